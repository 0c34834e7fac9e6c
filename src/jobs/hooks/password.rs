//! A password in what `psql` connects to. Arguments of a process can be read by everybody on the machine, its environment only by its own user and
//! root: so the password goes there (`PGPASSWORD`), and the rest to the arguments.

/// The connection without its password, and the password. Both ways of libpq to write a connection are understood: `key=value ...`, and URIs. What
/// libpq would not understand is left as it is, for it to complain of.
pub(super) fn split(connection: &str) -> (String, Option<String>) {
    if is_uri(connection) { split_uri(connection) } else { split_pairs(connection) }
}

/// Secrets that libpq takes from a connection or a service file only, never from the environment.
const NOT_IN_THE_ENVIRONMENT: [&str; 2] = ["sslpassword", "oauth_client_secret"];

/// Why a part of the connection that may be secret would come to stand in the arguments.
pub(super) fn exposed(connection: &str) -> Option<String> {
    let (left, password) = split(connection);
    let names: Vec<String> = match is_uri(&left) {
        true => left.split_once('?').map_or("", |(_, query)| query).split('&').map(name_in_uri).collect(),
        false => names_in_pairs(&left),
    };
    if let Some(name) = names.iter().find(|name| NOT_IN_THE_ENVIRONMENT.contains(&name.as_str())) {
        return Some(format!(
            "`{name}` would be seen in the arguments of psql: put it into a service file (pg_service.conf), and `service=...` here"
        ));
    }
    let is_cut = names.iter().any(|name| name.contains(char::is_whitespace))
        || !left.contains('=') && !is_uri(&left) && !left.is_empty();
    (password.is_some() && is_cut).then(|| "a password with a blank in it wants quotes: password='...'".to_owned())
}

fn is_uri(connection: &str) -> bool {
    ["postgresql://", "postgres://"].iter().any(|scheme| connection.starts_with(scheme))
}

fn name_in_uri(pair: &str) -> String {
    decoded(pair.split_once('=').map_or(pair, |(name, _)| name))
}

/// What is taken for names; the rest behind the last value, if there is one, with a blank.
fn names_in_pairs(connection: &str) -> Vec<String> {
    let (mut names, mut rest) = (Vec::new(), connection);
    while let Some(at) = rest.find('=') {
        names.push(rest[..at].trim().to_owned());
        let after = rest[at + 1..].trim_start();
        rest = &after[value(after).1..];
    }
    if !rest.trim().is_empty() && !names.is_empty() {
        names.push(format!("{} ", rest.trim()));
    }
    names
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
            // libpq decodes names, too.
            Some((name, secret)) if decoded(name) == "password" => password = Some(decoded(secret)),
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
    use super::{exposed, split};

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
            ("postgresql://h/d?pass%77ord=p", "postgresql://h/d", Some("p")),
        ] {
            let (kept, secret) = split(connection);
            assert_eq!((kept.as_str(), secret.as_deref()), (left, password), "{connection}");
        }
    }

    #[test]
    fn secrets_that_would_be_arguments_are_refused_and_not_repeated() {
        for connection in [
            "host=a sslpassword=s3cret",
            "host=a oauth_client_secret='s3cret'",
            "postgresql://h/d?sslpassword=s3cret",
            "postgres://h/d?a=b&ssl%70assword=s3cret",
            "host=a password=my s3cret",
            "host=a password=my s3cret dbname=b",
            "password=my s3cret",
        ] {
            let why = exposed(connection).unwrap_or_else(|| panic!("{connection} is taken"));
            assert!(!why.contains("s3cret"), "{why}");
        }
        for connection in [
            "bench",
            "",
            "host=a user=b",
            "password=",
            "host = a password = 'my s3cret'",
            "postgres://u:p@h/d?sslkey=/k",
            "service=x",
        ] {
            assert_eq!(exposed(connection), None, "{connection}");
        }
    }
}
