//! What EXPLAIN shows: a tree of nodes with named values, printed in Postgres's text format or in
//! its json format.

use std::fmt::Write;

/// A step of a plan.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Node {
    /// `Shard Scan`, in json.
    pub kind: String,
    /// `Shard Scan on shard1`, in text.
    pub title: String,
    /// What is known about it, in order.
    pub properties: Vec<Property>,
    /// The steps that it takes its rows from.
    pub children: Vec<Node>,
    /// What a shard's own EXPLAIN says about it.
    pub native: Native,
}

/// A named value.
#[derive(Debug, Clone, PartialEq)]
pub struct Property {
    /// `Actual Rows`
    pub name: &'static str,
    /// Its value.
    pub value: Value,
    /// In text it stands behind the title, as `actual rows=5`, under this name.
    pub inline: Option<&'static str>,
    /// Json alone has it: the title says the same.
    pub hidden: bool,
}

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Words.
    Text(String),
    /// A number of things.
    Count(u64),
    /// Milliseconds.
    Milliseconds(f64),
    /// Several words.
    List(Vec<String>),
}

/// The answer of a shard to an EXPLAIN of ours, in the format that the client has asked for.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Native {
    /// It was not asked.
    #[default]
    None,
    /// Lines of text.
    Lines(Vec<String>),
    /// The object that it calls `Plan`.
    Json(String),
}

impl Node {
    /// A node that json calls `kind` and text `title`.
    pub fn new(kind: impl Into<String>, title: impl Into<String>) -> Node {
        Node {
            kind: kind.into(),
            title: title.into(),
            ..Node::default()
        }
    }

    /// With a property on a line of its own.
    pub fn with(mut self, name: &'static str, value: Value) -> Node {
        self.add(name, value);
        self
    }

    /// With a property that the title has said already.
    pub fn hidden(mut self, name: &'static str, value: Value) -> Node {
        self.properties.push(Property {
            name,
            value,
            inline: None,
            hidden: true,
        });
        self
    }

    /// With a property on a line of its own.
    pub fn add(&mut self, name: &'static str, value: Value) {
        self.properties.push(Property {
            name,
            value,
            inline: None,
            hidden: false,
        });
    }

    /// With a property behind the title: `(inline=value)`.
    pub fn add_inline(&mut self, name: &'static str, inline: &'static str, value: Value) {
        self.properties.push(Property {
            name,
            value,
            inline: Some(inline),
            hidden: false,
        });
    }
}

/// Postgres's text format, line by line. `footer` are the lines at its end.
pub fn text(root: &Node, footer: &[Property]) -> Vec<String> {
    let mut lines = Vec::new();
    put_text(root, 0, &mut lines);
    for property in footer {
        let value = spelled(&property.value);
        lines.push(format!("{}: {value}", property.name));
    }
    lines
}

/// The title stands at `indent`, or behind an arrow that does.
fn put_text(node: &Node, indent: usize, lines: &mut Vec<String>) {
    let mut first = " ".repeat(indent);
    if !lines.is_empty() {
        first.push_str("->  ");
    }
    first.push_str(&node.title);
    let behind = node.properties.iter().filter_map(|property| {
        let name = property.inline?;
        Some(format!("{name}={}", spelled(&property.value)))
    });
    let behind: Vec<String> = behind.collect();
    if !behind.is_empty() {
        let _ = write!(first, "  ({})", behind.join(", "));
    }
    let below = if lines.is_empty() {
        indent + 2
    } else {
        indent + 6
    };
    lines.push(first);
    for property in &node.properties {
        if property.inline.is_none() && !property.hidden {
            put_property(property, below, lines);
        }
    }
    if let Native::Lines(native) = &node.native {
        for (index, line) in native.iter().enumerate() {
            let arrow = if index == 0 { "->  " } else { "    " };
            lines.push(format!("{}{arrow}{line}", " ".repeat(below)));
        }
    }
    for child in &node.children {
        put_text(child, below, lines);
    }
}

/// A line break in a value is followed by spaces, so that it stays below its name.
fn put_property(property: &Property, indent: usize, lines: &mut Vec<String>) {
    let value = spelled(&property.value);
    let mut pieces = value.lines();
    let first = pieces.next().unwrap_or_default();
    lines.push(format!("{}{}: {first}", " ".repeat(indent), property.name));
    let further = " ".repeat(indent + property.name.len() + 2);
    lines.extend(pieces.map(|piece| format!("{further}{piece}")));
}

fn spelled(value: &Value) -> String {
    match value {
        Value::Text(text) => text.clone(),
        Value::Count(number) => number.to_string(),
        Value::Milliseconds(time) => format!("{time:.3} ms"),
        Value::List(list) => list.join(", "),
    }
}

/// Postgres's json format: `[{"Plan": {...}, ...}]`. `behind` is json behind the plan, as a shard
/// has written it.
pub fn json(root: &Node, footer: &[Property], behind: &str) -> String {
    let mut out = String::from("[\n  {\n    \"Plan\": ");
    put_json(root, 4, &mut out);
    for property in footer {
        let _ = write!(
            out,
            ",\n    {}: {}",
            quoted(property.name),
            json_value(&property.value)
        );
    }
    out.push_str(behind.trim_end());
    out.push_str("\n  }\n]");
    out
}

fn put_json(node: &Node, indent: usize, out: &mut String) {
    let pad = " ".repeat(indent + 2);
    let _ = write!(out, "{{\n{pad}\"Node Type\": {}", quoted(&node.kind));
    for property in &node.properties {
        let value = json_value(&property.value);
        let _ = write!(out, ",\n{pad}{}: {value}", quoted(property.name));
    }
    let native = match &node.native {
        Native::Json(plan) => Some(plan),
        Native::None | Native::Lines(_) => None,
    };
    if native.is_some() || !node.children.is_empty() {
        let _ = write!(out, ",\n{pad}\"Plans\": [");
        let mut comma = "";
        for child in &node.children {
            let _ = write!(out, "{comma}\n{pad}  ");
            put_json(child, indent + 4, out);
            comma = ",";
        }
        if let Some(plan) = native {
            // Below a plan of Postgres's own stand four spaces less. Strings have no line breaks.
            let plan = plan.replace("\n    ", &format!("\n{pad}  "));
            let _ = write!(out, "{comma}\n{pad}  {plan}");
        }
        let _ = write!(out, "\n{pad}]");
    }
    let _ = write!(out, "\n{}}}", " ".repeat(indent));
}

fn json_value(value: &Value) -> String {
    match value {
        Value::Text(text) => quoted(text),
        Value::Count(number) => number.to_string(),
        Value::Milliseconds(time) => format!("{time:.3}"),
        Value::List(list) => {
            let list: Vec<String> = list.iter().map(|one| quoted(one)).collect();
            format!("[{}]", list.join(", "))
        }
    }
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            control if control < ' ' => {
                let _ = write!(out, "\\u{:04x}", u32::from(control));
            }
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

/// The object behind `"Plan":` in a shard's json, and what stands between it and the end of the
/// object that holds it.
pub fn plan_in_json(document: &str) -> Option<(&str, &str)> {
    let start = document.find("\"Plan\":")? + "\"Plan\":".len();
    let start = start + document.get(start..)?.find('{')?;
    let end = start + closing(document.get(start..)?)?;
    let rest = document.get(end..)?;
    let behind = rest.get(..rest.rfind('}')?)?;
    Some((document.get(start..end)?, behind))
}

/// The length of the object that a text starts with.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut inside, mut escaped) = (0usize, false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if inside => escaped = true,
            b'"' => inside = !inside,
            b'{' if !inside => depth += 1,
            b'}' if !inside => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
    }
    None
}

/// The rows that a shard expects of a statement: the first `rows=` or `"Plan Rows":` there is.
pub fn estimated_rows(native: &Native) -> Option<u64> {
    let (text, word) = match native {
        Native::None => return None,
        Native::Lines(lines) => (lines.first()?.as_str(), "rows="),
        Native::Json(plan) => (plan.as_str(), "\"Plan Rows\":"),
    };
    let rest = text.get(text.find(word)? + word.len()..)?.trim_start();
    let end = rest
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(rest.len());
    rest.get(..end)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(native: Native) -> Node {
        let mut root = Node::new("Automator67 Merge", "Merge on a, b")
            .hidden("Shards", Value::List(vec!["a".into(), "b".into()]))
            .with("Reason", Value::Text("two\nlines \"x\"".into()));
        root.add_inline("Actual Rows", "rows", Value::Count(3));
        let mut scan = Node::new("Shard Scan", "Shard Scan on a");
        scan.native = native;
        root.children.push(scan);
        root
    }

    fn total() -> Property {
        Property {
            name: "Total Time",
            value: Value::Milliseconds(1.5),
            inline: None,
            hidden: false,
        }
    }

    #[test]
    fn text_is_indented_as_by_postgres() {
        let native = Native::Lines(vec!["Limit  (rows=7)".into(), "  ->  Seq Scan".into()]);
        assert_eq!(estimated_rows(&native), Some(7));
        let lines = text(&sample(native), &[total()]);
        assert_eq!(
            lines,
            [
                "Merge on a, b  (rows=3)",
                "  Reason: two",
                "          lines \"x\"",
                "  ->  Shard Scan on a",
                "        ->  Limit  (rows=7)",
                "              ->  Seq Scan",
                "Total Time: 1.500 ms",
            ]
        );
    }

    #[test]
    fn json_takes_the_plan_of_a_shard_whole() {
        let document =
            r#"[ {"Plan": {"Filter": "a = '}\"{'", "Plan Rows": 7}, "Planning Time": 0.1} ]"#;
        let (plan, behind) = plan_in_json(document).expect("a plan");
        assert_eq!(plan, r#"{"Filter": "a = '}\"{'", "Plan Rows": 7}"#);
        assert_eq!(behind, r#", "Planning Time": 0.1"#);
        let native = Native::Json(plan.to_owned());
        assert_eq!(estimated_rows(&native), Some(7));
        let made = json(&sample(native), &[total()], behind);
        let expected = r#"[{"Plan":{"NodeType":"Automator67Merge","Shards":["a","b"],"Reason":"two\nlines\"x\"","ActualRows":3,"Plans":[{"NodeType":"ShardScan","Plans":[{"Filter":"a='}\"{'","PlanRows":7}]}]},"TotalTime":1.500,"PlanningTime":0.1}]"#;
        let made: String = made.split_whitespace().collect();
        assert_eq!(made, expected.replace("lines\"x\"", "lines\\\"x\\\""));
        for broken in ["", "[]", "{\"Plan\": {", "{\"Plan\": }"] {
            assert_eq!(plan_in_json(broken), None, "{broken}");
        }
    }
}
