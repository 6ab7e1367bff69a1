//! What two documents say differently. Their lists have no order.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Document;

pub(super) fn differences(one: &Document, other: &Document) -> Vec<String> {
    let (one, other) = (said(one), said(other));
    one.symmetric_difference(&other).cloned().collect()
}

/// Each entry of each list, behind the list's name.
fn said(document: &Document) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    let value = serde_json::to_value(document).unwrap_or_default();
    note("", &value, &mut lines);
    lines
}

fn note(name: &str, value: &Value, lines: &mut BTreeSet<String>) {
    match value {
        Value::Null => {}
        Value::Object(fields) if !fields.is_empty() => {
            for (field, value) in fields {
                note(&format!("{name} {field}"), value, lines);
            }
        }
        Value::Array(entries) => {
            lines.extend(entries.iter().map(|entry| format!("{name}: {entry}")));
        }
        other => {
            lines.insert(format!("{name}: {other}"));
        }
    }
}
