//! Patterns of paths: `*` stands for any run of characters but `/`, `?` for one, `**` for any run; a pattern that ends in `/` is a directory
//! with everything below it.
//!
//! A pattern without `/` is compared with the last component of the path, one with `/` with all of it. Matching follows all
//! possibilities at once, so that no pattern of a user takes exponential time; and the same walk over two patterns tells whether some
//! path fits both, which is how rules that contradict each other are found before a file meets them.

use std::collections::HashSet;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Byte(u8),
    /// One character but `/`.
    One,
    /// Any run without `/`.
    Run,
    /// Any run.
    Any,
    /// Nothing, or directories with the `/` behind them.
    Directories,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    tokens: Vec<Token>,
}

impl Pattern {
    pub fn new(text: &str) -> Pattern {
        let mut tokens = if text.contains('/') { Vec::new() } else { vec![Token::Directories] };
        let mut rest = text.strip_prefix('/').unwrap_or(text).as_bytes();
        let mut at_start = true;
        while let Some((first, after)) = rest.split_first() {
            let (token, left) = match (first, after) {
                (b'*', [b'*', b'/', left @ ..]) if at_start => (Token::Directories, left),
                (b'*', [b'*', left @ ..]) => (Token::Any, left),
                (b'*', left) => (Token::Run, left),
                (b'?', left) => (Token::One, left),
                (byte, left) => (Token::Byte(*byte), left),
            };
            at_start = matches!(token, Token::Byte(b'/') | Token::Directories);
            tokens.push(token);
            rest = left;
        }
        if text.ends_with('/') {
            tokens.push(Token::Any);
        }
        Pattern { tokens }
    }

    pub fn matches(&self, path: &str) -> bool {
        let mut states = self.reach(HashSet::from([0]), true);
        for byte in path.bytes() {
            let next = states.iter().filter_map(|at| self.consume(*at, byte)).collect();
            states = self.reach(next, byte == b'/');
        }
        states.contains(&self.tokens.len())
    }

    /// Is there a path that both match?
    pub fn overlaps(&self, other: &Pattern) -> bool {
        let mut seen: HashSet<(usize, usize, bool)> = HashSet::new();
        let mut todo = vec![(0, 0, true)];
        while let Some((mine, theirs, boundary)) = todo.pop() {
            for left in self.reach(HashSet::from([mine]), boundary) {
                for right in other.reach(HashSet::from([theirs]), boundary) {
                    if left == self.tokens.len() && right == other.tokens.len() {
                        return true;
                    }
                    for byte in candidates(self.tokens.get(left), other.tokens.get(right)) {
                        let (Some(a), Some(b)) = (self.consume(left, byte), other.consume(right, byte)) else {
                            continue;
                        };
                        let state = (a, b, byte == b'/');
                        if seen.insert(state) {
                            todo.push(state);
                        }
                    }
                }
            }
        }
        false
    }

    /// Where one may be after skipping tokens that may stand for nothing.
    fn reach(&self, from: HashSet<usize>, boundary: bool) -> HashSet<usize> {
        let mut reached = HashSet::new();
        for mut at in from {
            while reached.insert(at) {
                match self.tokens.get(at) {
                    Some(Token::Run | Token::Any) => at += 1,
                    Some(Token::Directories) if boundary => at += 1,
                    _ => break,
                }
            }
        }
        reached
    }

    /// Where `byte` leads to from the token at `at`.
    fn consume(&self, at: usize, byte: u8) -> Option<usize> {
        match self.tokens.get(at)? {
            Token::Byte(wanted) => (*wanted == byte).then_some(at + 1),
            Token::One => (byte != b'/').then_some(at + 1),
            Token::Run => (byte != b'/').then_some(at),
            Token::Any | Token::Directories => Some(at),
        }
    }
}

/// Bytes that stand for all that two tokens can tell apart.
fn candidates(one: Option<&Token>, other: Option<&Token>) -> Vec<u8> {
    let named = [one, other].into_iter().flatten().filter_map(|token| match token {
        Token::Byte(byte) => Some(*byte),
        _ => None,
    });
    named.chain([b'/', b'a']).collect()
}

#[cfg(test)]
mod tests {
    use super::Pattern;

    #[test]
    fn patterns() {
        for (pattern, path) in [
            ("*.log", "a/b/redo.log"),
            ("redo*", "redo"),
            ("journal/*", "journal/x1"),
            ("a?c", "abc"),
            ("*a*b*", "xaayb"),
            ("**", "x"),
            ("x/*/z", "x/yy/z"),
            ("base/", "base/5/1259"),
            ("/base/5/", "base/5/1259"),
            ("base/**", "base/5/1259"),
            ("**/pgsql_tmp/**", "base/pgsql_tmp/x"),
            ("**/pgsql_tmp/**", "pgsql_tmp/x"),
            ("base/**/1259", "base/1259"),
        ] {
            assert!(Pattern::new(pattern).matches(path), "{pattern} {path}");
        }
        for (pattern, path) in [
            ("*.log", "redo.logs"),
            ("journal/*", "x/journal/1"),
            ("journal/*", "journal/a/b"),
            ("a?c", "ac"),
            ("", "x"),
            ("x/?", "x//"),
            ("base/", "base"),
            ("base/", "database/5"),
            ("base/**/1259", "base/51259"),
            ("**/tmp/x", "atmp/x"),
        ] {
            assert!(!Pattern::new(pattern).matches(path), "{pattern} {path}");
        }
    }

    #[test]
    fn patterns_that_share_a_path_overlap() {
        for (one, other) in [
            ("base/5/", "base/5/1259"),
            ("base/*/1259", "base/5/*"),
            ("*.log", "pg_log/"),
            ("a*b", "*ab*b"),
            ("**/x", "y/x"),
            ("?", "a"),
        ] {
            assert!(Pattern::new(one).overlaps(&Pattern::new(other)), "{one} {other}");
            assert!(Pattern::new(other).overlaps(&Pattern::new(one)), "{other} {one}");
        }
        for (one, other) in
            [("base/5/", "base/6/"), ("*.log", "*.txt"), ("base/*", "base/5/1259"), ("a?", "a"), ("global/*", "base/*")]
        {
            assert!(!Pattern::new(one).overlaps(&Pattern::new(other)), "{one} {other}");
        }
    }

    /// Matching used to be a walk with backtracking elsewhere, which such patterns take exponential time.
    #[test]
    fn stars_are_cheap() {
        assert!(!Pattern::new(&"*a".repeat(60)).matches(&"a".repeat(59)));
    }
}
