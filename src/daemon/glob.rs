//! Patterns of file names, as shells have them: `*` stands for any run of characters but `/`, `?` for one.

/// A pattern without `/` is compared with the last component of the path, one with `/` with all of it.
pub(super) fn matches(pattern: &str, path: &str) -> bool {
    let text = match pattern.contains('/') {
        true => path,
        false => path.rsplit('/').next().unwrap_or(path),
    };
    fits(pattern.as_bytes(), text.as_bytes())
}

/// Walks both at once; at a mismatch after a `*` that one takes a byte more. No recursion: patterns are users'.
fn fits(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(b'?') if text[t] != b'/' => (p, t) = (p + 1, t + 1),
            Some(byte) if *byte == text[t] => (p, t) = (p + 1, t + 1),
            _ => match star {
                Some((at, taken)) if text[taken] != b'/' => {
                    star = Some((at, taken + 1));
                    (p, t) = (at + 1, taken + 1);
                }
                _ => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::matches;

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
        ] {
            assert!(matches(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [
            ("*.log", "redo.logs"),
            ("journal/*", "x/journal/1"),
            ("journal/*", "journal/a/b"),
            ("a?c", "ac"),
            ("", "x"),
            ("x/?", "x//"),
        ] {
            assert!(!matches(pattern, path), "{pattern} {path}");
        }
    }
}
