//! Rules of the house that no compiler checks. Each reports every breach with its file and line.
//!
//! The sources are read with a small scanner: comments and the insides of literals are blanked before rules look at the
//! code, so that a word in a sentence breaks no rule. Test code is what `#[cfg(test)]` and `#[test]` mark, and files named `tests`.

use std::path::{Path, PathBuf};

/// Rooms from the top down, as in the picture that opens `src/lib.rs`. A room imports from lower rows only.
const ROWS: &[&[&str]] = &[
    &["main", "cli"],
    &["control"],
    &["daemon"],
    &["fuse", "namespace"],
    &["jobs"],
    &["policy"],
    &["heat"],
    &["volume"],
    &["log", "tier", "repository"],
    &["ondisk"],
    &["device"],
    &["units", "error", "sync"],
];

/// Imports within a row.
const SIDEWAYS: &[(&str, &str)] = &[("main", "cli"), ("fuse", "namespace"), ("error", "units")];

const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 800;

/// Where a thing may be used that is forbidden elsewhere, and why. A path that ends in `/` is a room or a part of one.
type Seams = &'static [(&'static str, &'static str)];

const FILESYSTEM: Seams = &[
    ("src/device/", "the seam itself"),
    ("src/tier/identity", "tells whether a path is a tier at all, before there is a device"),
    ("src/namespace/", "home is a directory of its users, not a store of ours"),
    ("src/jobs/", "adopt and release work on the users' directories"),
    ("src/daemon/", "settings, the mount table, the lock against a second daemon"),
    ("src/control/", "the file of the socket"),
    ("src/cli/", "files named on the command line"),
];
const CLOCKS: Seams = &[("src/device/", "the seam itself")];
const ASYNC: Seams = &[
    ("src/control/", "the control plane is the one place that waits for many at once"),
    ("src/daemon/", "starts the control plane"),
];
const UNSAFE: Seams = &[
    ("src/device/sys.rs", "system calls and views of aligned memory"),
    ("src/device/sys_home.rs", "system calls on home"),
    ("src/device/sys_uring.rs", "memory shared with the kernel"),
];

/// What `tests/interleavings` runs: rooms, and single files.
const CHECKED: &[&str] =
    &["src/log/", "src/volume/claims.rs", "src/volume/readers.rs", "src/volume/wake.rs", "src/fuse/pool.rs"];

/// Names that say nothing, and names of crates that a module of the same name would hide.
const FORBIDDEN_NAMES: &[&str] =
    &["util", "utils", "common", "helper", "helpers", "manager", "managers", "misc", "config", "systemd", "fuser"];

#[test]
fn rooms_import_downwards_only() {
    verdict(imports, "Rooms import lower rooms only; the ranks are in the picture that opens src/lib.rs.");
}

#[test]
fn the_picture_in_lib_shows_these_ranks() {
    let lib = std::fs::read_to_string(root().join("src/lib.rs")).expect("src/lib.rs");
    let picture = lib.lines().skip_while(|line| *line != "//! ```text").skip(1).take_while(|line| *line != "//! ```");
    let row = |line: &str| -> Vec<String> {
        let names = line.trim_start_matches("//!").trim_start().split("  ").next().unwrap_or_default();
        names.split(", ").map(str::to_owned).collect()
    };
    let shown: Vec<Vec<String>> = picture.map(row).collect();
    assert_eq!(shown, ROWS, "src/lib.rs and tests/tidy.rs disagree about the rooms");
    let is_declared = |room: &&str| *room == "main" || lib.contains(&format!("pub mod {room};"));
    let missing: Vec<_> = ROWS.concat().into_iter().filter(|room| !is_declared(room)).collect();
    assert!(missing.is_empty(), "rooms that src/lib.rs does not declare: {missing:?}");
}

#[test]
fn functions_fit_a_screen() {
    verdict(long_functions, "A function has at most 70 lines.");
}

#[test]
fn files_are_short() {
    verdict(long_files, "A file has at most 800 lines.");
}

#[test]
fn unsafe_is_confined() {
    verdict(
        |source| outside(source, UNSAFE, &word_lines(source, "unsafe"), "`unsafe`"),
        "See UNSAFE in tests/tidy.rs.",
    );
}

#[test]
fn files_and_clocks_are_reached_through_their_seams() {
    verdict(operating_system, "See FILESYSTEM and CLOCKS in tests/tidy.rs.");
}

#[test]
fn async_stays_in_the_control_plane() {
    verdict(|source| outside(source, ASYNC, &word_lines(source, "tokio"), "tokio"), "See ASYNC in tests/tidy.rs.");
}

#[test]
fn what_is_run_in_every_order_hides_no_primitive() {
    let checked = root().join("tests/interleavings/main.rs");
    let checked = std::fs::read_to_string(checked).expect("tests/interleavings/main.rs");
    let missing: Vec<_> = CHECKED.iter().filter(|path| !checked.contains(&format!("\"../../{path}"))).collect();
    assert!(missing.is_empty() && checked.matches("../../src/").count() == CHECKED.len(), "other than {CHECKED:?}");
    verdict(hidden_primitives, "Take it from `crate::sync`, where tests/interleavings can put its own.");
}

#[test]
fn imports_are_named() {
    verdict(glob_imports, "Import by name; only test modules may take all of their parent.");
}

#[test]
fn names_say_something() {
    verdict(empty_names, "Name a file or room for what it does, not for being of use; and never like a crate.");
}

#[test]
fn nothing_is_left_to_do() {
    verdict(unfinished, "Finish it, or leave it out.");
}

#[test]
fn nothing_is_unwrapped() {
    verdict(unwraps, "Use `?`, or `expect` with the invariant that makes a failure impossible.");
}

/// Each promise names its tests; a test that was renamed must not leave a promise behind that nobody checks.
#[test]
fn semantics_name_tests_that_exist() {
    let text = std::fs::read_to_string(root().join("SEMANTICS.md")).expect("SEMANTICS.md");
    let codes = text.split('`').skip(1).step_by(2).filter_map(|code| code.split_once("::"));
    let named: Vec<(&str, &str)> = codes.filter(|(file, _)| file.ends_with(".rs")).collect();
    assert!(named.len() > 100, "found {} names of tests", named.len());
    let exists = |(file, test): &&(&str, &str)| {
        let source = std::fs::read_to_string(root().join(file)).unwrap_or_default();
        let at = source.find(&format!("fn {test}("));
        at.is_some_and(|at| source[..at].trim_end().ends_with(']'))
    };
    let missing: Vec<String> =
        named.iter().filter(|one| !exists(one)).map(|(file, test)| format!("{file}::{test}")).collect();
    assert!(missing.is_empty(), "SEMANTICS.md names tests that do not exist:\n  {}", missing.join("\n  "));
    let invariants = (1..=10).map(|number| format!("I{number}"));
    for rule in invariants.chain((1..=29).map(|number| format!("R{number}"))) {
        let line = text.lines().find(|line| line.starts_with(&format!("| {rule} ")));
        let line = line.unwrap_or_else(|| panic!("SEMANTICS.md has no line of {rule}"));
        let says = ["::", "*not built*", "*not shown*"].iter().any(|word| line.contains(word));
        assert!(says, "{rule} names no test and does not say so");
    }
}

/// A source file, read once into what the rules need.
struct Source {
    /// Relative to the package, with `/`.
    path: String,
    raw: String,
    /// `raw` with comments and the insides of literals blanked; the same lines.
    code: String,
    /// The comments alone; the same lines.
    comments: String,
    /// Per line: is it part of a test module or a test function?
    is_test: Vec<bool>,
}

impl Source {
    fn new(path: &str, raw: &str) -> Source {
        let (code, comments) = scan(raw);
        let all_test = path.starts_with("tests/") || path.split('/').any(|part| part == "tests" || part == "tests.rs");
        let mut is_test = vec![all_test; raw.lines().count() + 1];
        for range in test_items(&code) {
            is_test[line_of(&code, range.start) - 1..line_of(&code, range.end)].fill(true);
        }
        Source { path: path.to_owned(), raw: raw.to_owned(), code, comments, is_test }
    }

    /// The room a file belongs to; none for `src/lib.rs` and for tests.
    fn room(&self) -> Option<&str> {
        let below = self.path.strip_prefix("src/")?;
        let room = below.split('/').next()?.trim_end_matches(".rs");
        (room != "lib").then_some(room)
    }

    fn is_test(&self, line: usize) -> bool {
        self.is_test[line - 1]
    }

    fn breach(&self, line: usize, what: &str) -> String {
        format!("{}:{line}: {what}", self.path)
    }
}

/// Fails with all breaches of one rule in all sources.
fn verdict(rule: impl Fn(&Source) -> Vec<String>, advice: &str) {
    let mut sources = Vec::new();
    for dir in ["src", "tests"] {
        read_below(&root().join(dir), &mut sources);
    }
    assert!(sources.len() > 10, "found {} sources below {}", sources.len(), root().display());
    let breaches: Vec<String> = sources.iter().flat_map(rule).collect();
    assert!(breaches.is_empty(), "{} breaches:\n  {}\n{advice}", breaches.len(), breaches.join("\n  "));
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read_below(dir: &Path, sources: &mut Vec<Source>) {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(dir).expect("a source directory").map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            read_below(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let raw = std::fs::read_to_string(&path).expect("source text");
            let relative = path.strip_prefix(root()).expect("below the package").to_string_lossy().replace('\\', "/");
            sources.push(Source::new(&relative, &raw));
        }
    }
}

// The rules.

fn imports(source: &Source) -> Vec<String> {
    let Some(room) = source.room() else { return Vec::new() };
    let Some(rank) = rank(room) else {
        return vec![source.breach(1, &format!("room `{room}` has no rank"))];
    };
    let mut used = first_segments(&source.code, "crate");
    used.extend(first_segments(&source.code, "heatfs"));
    used.extend(parents_reached(source));
    let mut breaches = Vec::new();
    for (line, target) in used {
        let Some(below) = self::rank(&target) else { continue };
        if target != room && below <= rank && !SIDEWAYS.contains(&(room, target.as_str())) {
            breaches.push(source.breach(line, &format!("`{room}` imports `{target}`, which is not below it")));
        }
    }
    breaches
}

/// Distance from the top.
fn rank(room: &str) -> Option<usize> {
    ROWS.iter().position(|row| row.contains(&room))
}

/// Other rooms reached with `super::` from where that leads to the top of the crate.
fn parents_reached(source: &Source) -> Vec<(usize, String)> {
    let depth = match source.path.trim_end_matches(".rs").split('/').collect::<Vec<_>>().as_slice() {
        ["src", between @ .., "mod"] => between.len(),
        ["src", between @ ..] => between.len(),
        _ => return Vec::new(),
    };
    let found = first_segments(&source.code, &vec!["super"; depth].join("::"));
    found.into_iter().filter(|(line, _)| !source.is_test(*line)).collect()
}

fn long_functions(source: &Source) -> Vec<String> {
    let code = &source.code;
    let mut breaches = Vec::new();
    for at in word_offsets(code, "fn") {
        let name: String = code[at + 2..].trim_start().chars().take_while(|c| is_word(*c)).collect();
        let Some(end) = item_end(code, at).filter(|_| !name.is_empty()) else { continue };
        let (first, last) = (line_of(code, at), line_of(code, end));
        let lines = last - first + 1;
        if lines > FUNCTION_LINES_MAX {
            breaches.push(source.breach(first, &format!("`{name}` has {lines} lines")));
        }
    }
    breaches
}

fn long_files(source: &Source) -> Vec<String> {
    let lines = source.raw.lines().count();
    if lines <= FILE_LINES_MAX { Vec::new() } else { vec![source.breach(lines, &format!("{lines} lines"))] }
}

fn operating_system(source: &Source) -> Vec<String> {
    let files: Vec<usize> = first_segments(&source.code, "std")
        .into_iter()
        .filter(|(_, name)| name == "fs")
        .map(|(line, _)| line)
        .collect();
    let mut clocks = word_lines(source, "SystemTime");
    clocks.extend(word_lines(source, "Instant::now"));
    let mut breaches = outside(source, FILESYSTEM, &files, "`std::fs`");
    breaches.extend(outside(source, CLOCKS, &clocks, "a clock"));
    breaches
}

fn hidden_primitives(source: &Source) -> Vec<String> {
    if !CHECKED.iter().any(|path| source.path.starts_with(path)) {
        return Vec::new();
    }
    let hidden = ["parking_lot", "std::thread", "std::sync::atomic", "std::sync::Mutex", "std::sync::Condvar"];
    let lines = hidden.iter().flat_map(|name| word_lines(source, name)).filter(|line| !source.is_test(*line));
    lines.map(|line| source.breach(line, "a primitive past `crate::sync`")).collect()
}

fn glob_imports(source: &Source) -> Vec<String> {
    let lines = word_lines(source, "use super::*");
    lines.into_iter().filter(|line| !source.is_test(*line)).map(|line| source.breach(line, "`use super::*`")).collect()
}

fn empty_names(source: &Source) -> Vec<String> {
    let parts = source.path.split('/').map(|part| part.trim_end_matches(".rs"));
    let mut breaches: Vec<String> = parts
        .filter(|part| FORBIDDEN_NAMES.contains(part))
        .map(|part| source.breach(1, &format!("`{part}` in its path")))
        .collect();
    for at in word_offsets(&source.code, "mod") {
        let name: String = source.code[at + 3..].trim_start().chars().take_while(|c| is_word(*c)).collect();
        if FORBIDDEN_NAMES.contains(&name.as_str()) {
            breaches.push(source.breach(line_of(&source.code, at), &format!("`mod {name}`")));
        }
    }
    breaches
}

fn unfinished(source: &Source) -> Vec<String> {
    let mut breaches = Vec::new();
    for (number, line) in source.comments.lines().enumerate() {
        for mark in ["TODO", "FIXME"] {
            if line.contains(mark) {
                breaches.push(source.breach(number + 1, mark));
            }
        }
    }
    for call in ["todo!(", "unimplemented!("] {
        let lines = word_lines(source, call.trim_end_matches('('));
        breaches.extend(lines.into_iter().map(|line| source.breach(line, &format!("`{call}`"))));
    }
    breaches
}

fn unwraps(source: &Source) -> Vec<String> {
    let lines = source.code.lines().enumerate().filter(|(_, line)| line.contains(".unwrap()"));
    let lines = lines.map(|(number, _)| number + 1).filter(|line| !source.is_test(*line));
    lines.map(|line| source.breach(line, "`.unwrap()`")).collect()
}

/// Breaches on those lines of library code that are not in one of the seams.
fn outside(source: &Source, seams: Seams, lines: &[usize], what: &str) -> Vec<String> {
    if source.room().is_none() || seams.iter().any(|(path, _)| source.path.starts_with(path)) {
        return Vec::new();
    }
    let lines = lines.iter().filter(|line| !source.is_test(**line));
    lines.map(|line| source.breach(*line, &format!("{what} outside its seam"))).collect()
}

// The scanner.

/// Splits a source into code and comments; both keep the length of every line in characters.
fn scan(raw: &str) -> (String, String) {
    let text: Vec<char> = raw.chars().collect();
    let (mut code, mut comments) = (String::new(), String::new());
    let mut at = 0;
    while at < text.len() {
        let (end, kind) = token(&text, at);
        for (index, &c) in text[at..end].iter().enumerate() {
            let edge = index == 0 || at + index + 1 == end;
            let blank = if c == '\n' { '\n' } else { ' ' };
            code.push(if kind == Token::Code || (kind == Token::Literal && edge) { c } else { blank });
            comments.push(if kind == Token::Comment { c } else { blank });
        }
        at = end;
    }
    (code, comments)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Token {
    Code,
    Comment,
    Literal,
}

/// The end of what begins at `at`, and what it is.
fn token(text: &[char], at: usize) -> (usize, Token) {
    let next = |offset: usize| text.get(at + offset).copied();
    let find = |from: usize, wanted: &[char]| {
        let found = text[from..].windows(wanted.len()).position(|window| window == wanted);
        found.map_or(text.len(), |offset| from + offset + wanted.len())
    };
    let starts_word = at == 0 || !is_word(text[at - 1]) || "bc".contains(text[at - 1]);
    match (text[at], next(1)) {
        ('/', Some('/')) => (find(at, &['\n']), Token::Comment),
        ('/', Some('*')) => (block_comment_end(text, at), Token::Comment),
        ('"', _) => (quoted_end(text, at, '"'), Token::Literal),
        ('r', Some('"' | '#')) if starts_word => {
            let hashes = text[at + 1..].iter().take_while(|c| **c == '#').count();
            if next(1 + hashes) != Some('"') {
                return (at + 1, Token::Code);
            }
            let mut close = vec!['"'];
            close.extend(vec!['#'; hashes]);
            (find(at + hashes + 2, &close), Token::Literal)
        }
        ('\'', Some('\\')) => (quoted_end(text, at, '\''), Token::Literal),
        ('\'', Some(_)) if next(2) == Some('\'') => (at + 3, Token::Literal),
        _ => (at + 1, Token::Code),
    }
}

fn block_comment_end(text: &[char], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0);
    while at + 1 < text.len() {
        match (text[at], text[at + 1]) {
            ('/', '*') => depth += 1,
            ('*', '/') if depth == 1 => return at + 2,
            ('*', '/') => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
    }
    text.len()
}

fn quoted_end(text: &[char], start: usize, quote: char) -> usize {
    let mut at = start + 1;
    while at < text.len() && text[at] != quote {
        at += if text[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(text.len())
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Byte offsets at which a word (or path, or phrase) stands by itself.
fn word_offsets(code: &str, word: &str) -> Vec<usize> {
    let stands_alone = |at: &usize| {
        let before = code[..*at].chars().next_back().is_some_and(is_word);
        let after = code[at + word.len()..].chars().next().is_some_and(is_word);
        !before && (!after || word.ends_with('*'))
    };
    code.match_indices(word).map(|(at, _)| at).filter(stands_alone).collect()
}

fn word_lines(source: &Source, word: &str) -> Vec<usize> {
    word_offsets(&source.code, word).into_iter().map(|at| line_of(&source.code, at)).collect()
}

/// Counted from 1.
fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// The line and name of everything that paths take directly from `root`: `root::a::b` gives `a`, and
/// `root::{a, b::{c, d}}` gives `a` and `b`.
fn first_segments(code: &str, root: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for at in word_offsets(code, root) {
        if code[..at].ends_with("::") {
            continue;
        }
        let Some(rest) = code[at + root.len()..].strip_prefix("::") else { continue };
        let start = code.len() - rest.len();
        let group = if rest.starts_with('{') { &code[start..closing(code, start)] } else { "" };
        let mut depth = 0;
        let mut offsets = vec![start];
        for (offset, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 1 && (c == ',' || c == '{') {
                offsets.push(start + offset + 1);
            }
        }
        for offset in offsets {
            let name = code[offset..].trim_start();
            let line = line_of(code, code.len() - name.len());
            let name: String = name.chars().take_while(|c| is_word(*c)).collect();
            if !name.is_empty() {
                found.push((line, name));
            }
        }
    }
    found
}

/// The offset just after the brace that closes the one at `open`.
fn closing(code: &str, open: usize) -> usize {
    let mut depth = 0;
    for (offset, c) in code[open..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => return open + offset + 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

/// The offset of the last character of an item: its closing brace; none for one that ends in a semicolon.
fn item_end(code: &str, start: usize) -> Option<usize> {
    let mut depth = 0;
    for (offset, c) in code[start..].char_indices() {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            '{' if depth == 0 => return Some(closing(code, start + offset) - 1),
            ';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

/// Items that are compiled for tests only.
fn test_items(code: &str) -> Vec<std::ops::Range<usize>> {
    let marks = ["#[cfg(test)]", "#[cfg(all(test", "#[cfg(any(test", "#[test]"];
    let starts = marks.iter().flat_map(|mark| code.match_indices(mark)).map(|(at, _)| at);
    starts.filter_map(|start| Some(start..item_end(code, start)?)).collect()
}

// The rules' own tests: a rule that cannot fail is none.

#[test]
fn the_scanner_tells_code_from_words() {
    let raw = "let a = \"unsafe // \\\" x\"; // unsafe\nlet b = '\"'; /* un /* safe */ unsafe */ c\nr#\"un\"safe\"# 'a' &'a x";
    let (code, comments) = scan(raw);
    assert!(!code.contains("unsafe") && !code.contains("safe"), "{code}");
    assert!(
        code.lines().next().is_some_and(|line| line.trim_end() == format!("let a = \"{}\";", " ".repeat(14))),
        "{code}"
    );
    assert!(code.lines().nth(1).is_some_and(|line| line.starts_with("let b = ' ';") && line.ends_with(" c")), "{code}");
    assert!(code.ends_with("' ' &'a x"), "{code}");
    assert_eq!(comments.matches("unsafe").count(), 2);
    assert_eq!(code.lines().count(), raw.lines().count());
}

#[test]
fn every_rule_catches_its_breach() {
    let long = format!("fn f() {{\n{}}}\n", "    x();\n".repeat(69));
    type Rule = fn(&Source) -> Vec<String>;
    let breaches: &[(Rule, &str, &str, usize)] = &[
        (imports, "src/log/mod.rs", "use crate::volume::Volume;", 1),
        (imports, "src/log/mod.rs", "\nuse crate::{device, heat::{a, tier}, units};", 2),
        (imports, "src/log/a.rs", "\n\nfn f() { crate::tier::x() }", 3),
        (imports, "src/log/a.rs", "use super::super::volume::x;", 1),
        (imports, "src/log/mod.rs", "use super::volume::x;", 1),
        (imports, "src/units.rs", "use crate::error::Error;", 1),
        (imports, "src/attic/mod.rs", "", 1),
        (long_functions, "src/log/mod.rs", &long, 1),
        (long_files, "src/log/mod.rs", &"\n".repeat(801), 801),
        (operating_system, "src/volume/mod.rs", "use std::{fs, io};", 1),
        (operating_system, "src/volume/mod.rs", "let x = std::fs::read(y);", 1),
        (operating_system, "src/volume/mod.rs", "let x = Instant::now();", 1),
        (operating_system, "src/fuse/mod.rs", "fn f(x: SystemTime) {}", 1),
        (glob_imports, "src/log/mod.rs", "use super::*;", 1),
        (hidden_primitives, "src/log/mod.rs", "use std::sync::atomic::AtomicU64;", 1),
        (hidden_primitives, "src/volume/claims.rs", "x: parking_lot::Mutex<u8>", 1),
        (empty_names, "src/log/utils.rs", "", 1),
        (empty_names, "src/log/mod.rs", "mod helpers {}", 1),
        (unfinished, "src/log/mod.rs", "// TODO: more", 1),
        (unfinished, "src/log/mod.rs", "fn f() { todo!() }", 1),
        (unwraps, "src/log/mod.rs", "\nlet x = y.unwrap();\n#[cfg(test)]\nmod tests { fn f() { y.unwrap() } }", 2),
        (|s| outside(s, UNSAFE, &word_lines(s, "unsafe"), ""), "src/log/mod.rs", "unsafe { x() }", 1),
        (|s| outside(s, ASYNC, &word_lines(s, "tokio"), ""), "src/volume/mod.rs", "use tokio::sync::x;", 1),
    ];
    for (rule, path, text, line) in breaches {
        let found = rule(&Source::new(path, text));
        let prefix = format!("{path}:{line}: ");
        assert!(found.len() == 1 && found[0].starts_with(&prefix), "{path}: {text:.80}: {found:?}");
    }
}

#[test]
fn no_rule_catches_what_is_allowed() {
    let short = format!("fn f(x: [u8; 4]) {{\n{}}}\n", "    x();\n".repeat(68));
    type Rule = fn(&Source) -> Vec<String>;
    let allowed: &[(Rule, &str, &str)] = &[
        (imports, "src/fuse/mod.rs", "use crate::namespace::{control, Node};\n//! [`crate::cli`]"),
        (imports, "src/volume/mod.rs", "mod heat; use self::heat::x; use crate::{log::tier, volume::heat};"),
        (imports, "src/volume/a.rs", "use super::heat::x; use super::super::log;"),
        (imports, "src/main.rs", "fn main() { heatfs::cli::main() }"),
        (imports, "src/lib.rs", "pub mod cli; use crate::cli;"),
        (long_functions, "src/log/mod.rs", &short),
        (
            long_functions,
            "src/log/mod.rs",
            &format!("type F = fn(u8) -> u8;\ntrait T {{ fn f(&self);\n{} }}", "\n".repeat(80)),
        ),
        (operating_system, "src/log/mod.rs", "#[cfg(test)]\nmod tests {\n use std::fs;\n}\nfn f(x: Instant) {}"),
        (glob_imports, "src/log/mod.rs", "#[cfg(test)]\nmod tests {\n use super::*;\n}"),
        (hidden_primitives, "src/volume/mod.rs", "use parking_lot::Mutex;"),
        (hidden_primitives, "src/log/mod.rs", "use crate::sync::{Mutex, atomic::AtomicU64}; use std::sync::Arc;"),
        (unfinished, "src/volume/mod.rs", "fn f(todo: u8) { let x = \"todo!()\"; }"),
        (unwraps, "src/log/tests.rs", "x.unwrap();"),
        (unwraps, "src/log/mod.rs", "x.unwrap_or(1); // .unwrap()\n#[test]\nfn f() {\n x.unwrap();\n}"),
        (|s| outside(s, UNSAFE, &word_lines(s, "unsafe"), ""), "src/device/sys.rs", "unsafe { x() }"),
        (|s| outside(s, UNSAFE, &word_lines(s, "unsafe"), ""), "src/log/mod.rs", "#![deny(unsafe_code)] // unsafe"),
    ];
    for (rule, path, text) in allowed {
        let found = rule(&Source::new(path, text));
        assert!(found.is_empty(), "{path}: {text:.80}: {found:?}");
    }
}
