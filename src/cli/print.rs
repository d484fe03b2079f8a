//! What commands print. The only place that writes to standard output.
//!
//! Texts come from others too: a log's leaves, a server's answers. No control character of theirs reaches
//! the terminal, where it could rewrite what is on the screen.

use serde_json::Value;
use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::Write as _;

/// Writes a line to standard output. A reader that has gone is not an error.
pub fn line(text: &str) {
    out(&visible(text, None));
}

/// Writes a message to standard error. It may have several lines.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", visible(text, Some('\n')));
}

/// Writes JSON, indented.
pub fn json(value: &Value) {
    out(&visible_json(&serde_json::to_string_pretty(value).unwrap_or_default()));
}

/// A field of a server's answer as text; `-` where there is none.
#[must_use]
pub fn text(value: &Value, name: &str) -> String {
    match value.get(name) {
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => "-".to_owned(),
        Some(other) => other.to_string(),
    }
}

/// A list in a server's answer; empty where there is none.
#[must_use]
pub fn list(value: &Value, name: &str) -> Vec<Value> {
    value.get(name).and_then(Value::as_array).cloned().unwrap_or_default()
}

fn out(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// The text with its control characters (C0, DEL and C1) written out, but for one that may stay.
fn visible(text: &str, stays: Option<char>) -> Cow<'_, str> {
    let is_hidden = |char: char| char.is_control() && Some(char) != stays;
    if !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    for char in text.chars() {
        if is_hidden(char) {
            shown.extend(char.escape_debug());
        } else {
            shown.push(char);
        }
    }
    Cow::Owned(shown)
}

/// JSON with the control characters that it lets stand in strings, DEL and C1, as its escapes: it is the
/// same JSON. The line ends are those between its values.
fn visible_json(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for char in json.chars() {
        if char.is_control() && char != '\n' {
            let _ = write!(shown, "\\u{:04x}", u32::from(char));
        } else {
            shown.push(char);
        }
    }
    shown
}

/// Writes rows in aligned columns.
pub fn table(rows: &[Vec<String>]) {
    // Before they are measured: what is written out is longer.
    let cells =
        |row: &Vec<String>| row.iter().map(|cell| visible(cell, None).into_owned()).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(cells).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        line(cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_control_character_of_a_text_reaches_the_terminal() {
        let hostile = "a\u{1b}[2J\r\u{7f}\u{9b}1A\u{0}\nb\tä—";
        assert_eq!(visible(hostile, None), "a\\u{1b}[2J\\r\\u{7f}\\u{9b}1A\\0\\nb\\tä—");
        assert_eq!(visible(hostile, Some('\n')), "a\\u{1b}[2J\\r\\u{7f}\\u{9b}1A\\0\nb\\tä—");
        assert!(matches!(visible("plain, ä—", None), Cow::Borrowed("plain, ä—")));
        for char in (0..=0x9f_u8).map(char::from).filter(|char| char.is_control()) {
            assert!(!visible(&char.to_string(), None).contains(char), "{char:?}");
        }
    }

    #[test]
    fn json_is_the_same_json_without_control_characters() {
        let value = serde_json::json!({ "id": "a\u{1b}[2J\u{7f}\u{9b}1A\nb", "n": [1, "\r"] });
        let shown = visible_json(&serde_json::to_string_pretty(&value).unwrap());
        assert!(!shown.contains(|char: char| char.is_control() && char != '\n'), "{shown:?}");
        assert!(shown.contains("\\u009b") && shown.contains("\\u007f"), "{shown}");
        assert_eq!(serde_json::from_str::<Value>(&shown).unwrap(), value);
    }
}
