//! The tree as text: Rust files without comments, strings and tests, so that a word found in one is
//! code that ships.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A Rust file.
pub struct Source {
    /// From the root of the repository, with `/`.
    pub path: String,
    /// As it stands.
    pub text: String,
    /// Comments, strings and `#[cfg(test)]` items are blanks; lines are kept.
    pub code: String,
    /// As `code`, with the tests.
    pub code_and_tests: String,
}

impl Source {
    /// Takes a file's text apart.
    pub fn new(path: &str, text: &str) -> Self {
        let code_and_tests = without_comments_and_strings(text);
        let code = without_tests(&code_and_tests).0;
        Self { path: path.to_owned(), text: text.to_owned(), code, code_and_tests }
    }

    /// The room: the folder or file directly under `src`.
    pub fn room(&self) -> &str {
        let below = self.path.strip_prefix("src/").unwrap_or(&self.path);
        below.split('/').next().unwrap_or(below).trim_end_matches(".rs")
    }

    /// How many modules deep the file is: 1 for `src/app/mod.rs`, 2 for `src/app/accept.rs`.
    pub fn depth(&self) -> usize {
        let below = self.path.strip_prefix("src/").unwrap_or(&self.path);
        let names = below.trim_end_matches(".rs").split('/');
        names.filter(|name| *name != "mod").count()
    }
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below a folder, in order.
pub fn files(below: &str) -> Vec<Source> {
    let mut paths = Vec::new();
    collect(&root().join(below), &mut paths);
    paths.sort();
    let read = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).unwrap();
        Source::new(path.strip_prefix(root()).unwrap().to_str().unwrap(), &text)
    };
    paths.iter().map(read).collect()
}

/// Every Rust file of the programs, without those that are modules of tests.
pub fn shipped() -> Vec<Source> {
    let all = files("src");
    let tests: BTreeSet<String> = all.iter().flat_map(test_files).collect();
    all.into_iter().filter(|source| !tests.contains(&source.path)).collect()
}

fn collect(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

/// The line of a byte, from 1.
pub fn line_of(text: &str, at: usize) -> usize {
    text.get(..at).unwrap_or(text).matches('\n').count() + 1
}

/// Where a name stands in a text as a whole: not as a part of a longer one.
pub fn places(code: &str, name: &str) -> Vec<usize> {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    let (first, last) = (name.starts_with(part), name.ends_with(part));
    let whole = |at: &usize| {
        let before = code[..*at].chars().next_back();
        let after = code[*at + name.len()..].chars().next();
        let longer = first && before.is_some_and(part) || last && after.is_some_and(part);
        !longer
    };
    code.match_indices(name).map(|(at, _)| at).filter(whole).collect()
}

/// Rooms that the code names: `crate::room…`, also in a `use crate::{…}`, with their places.
pub fn rooms_named(code: &str, crate_name: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for at in places(code, &format!("{crate_name}::")) {
        let rest = at + crate_name.len() + 2;
        match code[rest..].strip_prefix('{') {
            None => found.push((at, first_name(&code[rest..]).to_owned())),
            Some(_) => {
                let end = closing(code, rest);
                for (offset, item) in top_level_items(&code[rest + 1..end]) {
                    found.push((rest + 1 + offset, first_name(item).to_owned()));
                }
            }
        }
    }
    found
}

fn first_name(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// The items of a list between braces, each with its place.
fn top_level_items(list: &str) -> Vec<(usize, &str)> {
    let (mut depth, mut from, mut items) = (0, 0, Vec::new());
    for (at, c) in list.char_indices().chain([(list.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let item = list[from..at].trim_start();
                if !item.is_empty() {
                    items.push((at - item.len(), item));
                }
                from = at + 1;
            }
            _ => {}
        }
    }
    items
}

/// The bracket that closes the one at `open`.
pub fn closing(code: &str, open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, c) in code[open..].char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => continue,
        }
        if depth == 0 {
            return open + at;
        }
    }
    code.len()
}

/// The files of `#[cfg(test)] mod name;`.
fn test_files(source: &Source) -> Vec<String> {
    let path = Path::new(&source.path);
    let (dir, stem) = (path.parent().unwrap(), path.file_stem().unwrap().to_str().unwrap());
    let dir = if matches!(stem, "mod" | "lib" | "main") { dir.to_owned() } else { dir.join(stem) };
    let names = without_tests(&source.code_and_tests).1;
    names.iter().map(|name| dir.join(format!("{name}.rs")).to_str().unwrap().to_owned()).collect()
}

/// Blanks every item under `#[cfg(test)]`; answers the names of the modules whose files are elsewhere.
fn without_tests(code: &str) -> (String, Vec<String>) {
    const MARK: &str = "#[cfg(test)]";
    let (mut out, mut modules, mut from) = (code.to_owned(), Vec::new(), 0);
    while let Some(found) = out[from..].find(MARK) {
        let start = from + found;
        let mut item = start + MARK.len();
        loop {
            item += out[item..].len() - out[item..].trim_start().len();
            if !out[item..].starts_with("#[") {
                break;
            }
            item = closing(&out, item + 1) + 1;
        }
        let body = out[item..].find(['{', ';']).map_or(out.len(), |at| item + at);
        let is_block = out[body..].starts_with('{');
        let end = if is_block { closing(&out, body) } else { body };
        let head = out[item..body].trim();
        if let Some((_, name)) = head.rsplit_once("mod ").filter(|_| !is_block) {
            modules.push(name.to_owned());
        }
        let stop = (end + 1).min(out.len());
        let blank: String = out[start..stop].chars().map(blank).collect();
        out.replace_range(start..stop, &blank);
        from = start;
    }
    (out, modules)
}

const fn blank(c: char) -> char {
    if c == '\n' { '\n' } else { ' ' }
}

/// Comments and the insides of strings and characters become blanks; lines are kept, and every place
/// of what is left counts in the new text.
pub fn without_comments_and_strings(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut i = 0;
    while i < chars.len() {
        let end = match (at(i), at(i + 1)) {
            ('/', '/') => (i..chars.len()).find(|n| at(*n) == '\n').unwrap_or(chars.len()),
            ('/', '*') => end_of_comment(&chars, i),
            ('"', _) => end_of_string(&chars, i + 1),
            ('r', '"' | '#') if !is_name(at(i.wrapping_sub(1))) => end_of_raw(&chars, i),
            ('\'', '\\') => (i + 3..chars.len()).find(|n| at(*n) == '\'').unwrap_or(i) + 1,
            ('\'', _) if at(i + 2) == '\'' => i + 3,
            _ => i,
        };
        if end > i {
            out.extend(chars[i..end.min(chars.len())].iter().map(|c| blank(*c)));
            i = end;
        } else {
            out.push(at(i));
            i += 1;
        }
    }
    out
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn end_of_comment(chars: &[char], start: usize) -> usize {
    let (mut depth, mut i) = (0_usize, start);
    while i < chars.len() {
        match chars[i..] {
            ['/', '*', ..] => (depth, i) = (depth + 1, i + 2),
            ['*', '/', ..] => {
                (depth, i) = (depth - 1, i + 2);
                if depth == 0 {
                    return i;
                }
            }
            _ => i += 1,
        }
    }
    i
}

fn end_of_string(chars: &[char], mut i: usize) -> usize {
    while i < chars.len() {
        match chars[i] {
            '\\' => i += 2,
            '"' => return i + 1,
            _ => i += 1,
        }
    }
    i
}

/// The end of `r"…"` or `r#"…"#`; the start itself if it is neither (such as `r#type`).
fn end_of_raw(chars: &[char], start: usize) -> usize {
    let hashes = chars[start + 1..].iter().take_while(|c| **c == '#').count();
    let open = start + 1 + hashes;
    if chars.get(open) != Some(&'"') {
        return start;
    }
    let close: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let found = chars[open + 1..].windows(close.len()).position(|w| w == close.as_slice());
    found.map_or(chars.len(), |at| open + 1 + at + close.len())
}
