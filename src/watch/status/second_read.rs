//! How far final blocks were read a second time.

use crate::ports::watch_store::Checked;
use serde_json::{Value, json};

/// As JSON. `on_another_node` is false where the chain has one node only.
pub(super) fn second_read_to_json(checked: &Checked) -> Value {
    json!({
        "next_block": checked.next_block,
        "late": checked.late,
        "on_another_node": checked.nodes > 1,
    })
}

/// In words.
pub(super) fn second_read_to_text(checked: &Checked) -> String {
    let Checked { next_block, late, nodes, .. } = checked;
    let by = match nodes {
        0 => "not begun",
        1 => "by the chain's ONLY node, which cannot show what it lacks",
        _ => "by another node",
    };
    let found = if *late > 0 { format!(", {late} EVENTS FOUND LATE") } else { String::new() };
    format!("second reading: next block {next_block}, {by}{found}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_node_is_said_to_be_one() {
        let checked = |nodes| Checked {
            source: "paid".to_owned(),
            next_block: 8,
            to_block: None,
            late: 2,
            nodes,
        };
        assert_eq!(second_read_to_json(&checked(1))["on_another_node"], false);
        assert_eq!(second_read_to_json(&checked(2))["on_another_node"], true);
        assert!(second_read_to_text(&checked(1)).contains("ONLY node"));
        assert_eq!(
            second_read_to_text(&checked(3)),
            "second reading: next block 8, by another node, 2 EVENTS FOUND LATE"
        );
    }
}
