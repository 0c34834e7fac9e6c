//! A password in what `psql` connects to. Arguments of a process can be read by everybody on the machine, its environment only by its own user and
//! root: so the password goes there (`PGPASSWORD`), and the rest to the arguments.

/// The connection without its password, and the password. Both ways of libpq to write a connection are understood: `key=value ...`, and URIs. What
/// libpq would not understand is left as it is, for it to complain of.
pub(super) fn split(connection: &str) -> (String, Option<String>) {
    let is_uri = ["postgresql://", "postgres://"].iter().any(|scheme| connection.starts_with(scheme));
    if is_uri { split_uri(connection) } else { split_pairs(connection) }
}

fn split_uri(connection: &str) -> (String, Option<String>) {
    let Some((scheme, rest)) = connection.split_once("//") else { return (connection.to_owned(), None) };
    let (before, query) = rest.split_once('?').map_or((rest, None), |(before, query)| (before, Some(query)));
    let mut password = None;
    // libpq takes the first `@` for the end of user and password, unless there is a `/` before it.
    let end = before.find('/').unwrap_or(before.len());
    let mut left = before.to_owned();
    if let Some((user, host)) = before[..end].split_once('@')
        && let Some((name, secret)) = user.split_once(':')
    {
        password = Some(decoded(secret));
        left = format!("{name}@{host}{}", &before[end..]);
    }
    let mut kept = Vec::new();
    for pair in query.into_iter().flat_map(|query| query.split('&')) {
        match pair.split_once('=') {
            Some(("password", secret)) => password = Some(decoded(secret)),
            _ => kept.push(pair),
        }
    }
    let query = if kept.is_empty() { String::new() } else { format!("?{}", kept.join("&")) };
    (format!("{scheme}//{left}{query}"), password)
}

/// `%41` is `A`.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let coded = digits.filter(|_| *byte == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(coded.unwrap_or(*byte));
        rest = if coded.is_some() { after.get(2..).unwrap_or_default() } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn split_pairs(connection: &str) -> (String, Option<String>) {
    let (mut kept, mut password) = (String::new(), None);
    let mut rest = connection;
    while let Some(at) = rest.find('=') {
        let key = rest[..at].trim();
        let after = rest[at + 1..].trim_start();
        let (value, end) = value(after);
        if key == "password" {
            password = Some(value);
        } else {
            let all = rest.len() - after.len() + end;
            kept.push_str(rest[..all].trim());
            kept.push(' ');
        }
        rest = &after[end..];
    }
    kept.push_str(rest.trim());
    (kept.trim_end().to_owned(), password)
}

/// A value in quotes or up to the next space, `\` taking what follows as it is; and where it ends.
fn value(text: &str) -> (String, usize) {
    let quoted = text.starts_with('\'');
    let (mut value, mut escaped) = (String::new(), false);
    for (at, char) in text.char_indices().skip(usize::from(quoted)) {
        match char {
            _ if escaped => {
                value.push(char);
                escaped = false;
            }
            '\\' => escaped = true,
            '\'' if quoted => return (value, at + 1),
            _ if !quoted && char.is_ascii_whitespace() => return (value, at),
            _ => value.push(char),
        }
    }
    (value, text.len())
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn a_password_is_taken_out_of_either_form_and_nothing_else_changes() {
        for (connection, left, password) in [
            ("host=/run/pg user=postgres", "host=/run/pg user=postgres", None),
            ("host=a password=s3cret user=b", "host=a user=b", Some("s3cret")),
            ("password = 'it''s'", "'s'", Some("it")),
            (r"user=b password='a \' b\\' port=1", "user=b port=1", Some(r"a ' b\")),
            (r"password=a\ b dbname=c", "dbname=c", Some("a b")),
            ("password=", "", Some("")),
            ("bench", "bench", None),
            ("postgresql:///bench?host=/run", "postgresql:///bench?host=/run", None),
            ("postgres://u@h:1/d", "postgres://u@h:1/d", None),
            ("postgresql://u:p%40ss@h:1,i:2/d?a=b", "postgresql://u@h:1,i:2/d?a=b", Some("p@ss")),
            ("postgresql://h/d?user=u&password=p%", "postgresql://h/d?user=u", Some("p%")),
            ("postgresql://h/d@e:f", "postgresql://h/d@e:f", None),
        ] {
            let (kept, secret) = split(connection);
            assert_eq!((kept.as_str(), secret.as_deref()), (left, password), "{connection}");
        }
    }
}
