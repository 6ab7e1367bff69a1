//! INSERT of many rows that are nothing but parameters. Each shard gets its rows as one array per
//! column: it reads them in a fraction of the time that it takes to parse, plan and bind a VALUES
//! list with thousands of parameters.

use automator67_planner::{
    catalog::ShardId,
    plan::{InsertSplit, Piece},
};
use bytes::{BufMut, BytesMut};

use super::super::{extended::Bound, multi::Task};
use crate::{error::Outcome, message};

/// Fewer rows are not worth it.
const ROWS_MIN: usize = 10;

/// Types whose values in binary are elements of arrays in binary, with the array's type. Those of
/// one size are checked here: the server's error would name an array.
const ARRAYS: &[(u32, u32, Option<usize>)] = &[
    (16, 1000, Some(1)),
    (17, 1001, None),
    (20, 1016, Some(8)),
    (21, 1005, Some(2)),
    (23, 1007, Some(4)),
    (25, 1009, None),
    (700, 1021, Some(4)),
    (701, 1022, Some(8)),
    (1043, 1015, None),
    (1082, 1182, Some(4)),
    (1114, 1115, Some(8)),
    (1184, 1185, Some(8)),
    (1700, 1231, None),
    (2950, 2951, Some(16)),
];
/// Those of which a text is the same in binary.
const TEXTS: [u32; 2] = [25, 1043];

/// An INSERT whose rows are parameters, all of the same types.
pub struct Arrays {
    text: String,
    columns: Vec<Column>,
    /// Row by row, the parameters' indexes.
    places: Vec<usize>,
}

struct Column {
    element: u32,
    array: u32,
    /// `::numeric(10,2)`, or nothing.
    cast: String,
}

impl Arrays {
    /// `None`: the rows are not of that form, or the types of their parameters are not known.
    pub fn of(insert: &InsertSplit, bound: &Bound) -> Option<Arrays> {
        let types = bound.statement.known_types();
        if insert.rows.len() < ROWS_MIN {
            return None;
        }
        let head = plain(&insert.prefix)?.strip_suffix(" VALUES")?;
        let suffix = plain(&insert.suffix)?;
        // What ON CONFLICT does may depend on how rows come.
        if !suffix.is_empty() && !suffix.trim_start().starts_with("RETURNING") {
            return None;
        }
        let mut columns: Vec<Column> = Vec::new();
        let mut places = Vec::new();
        for (number, row) in insert.rows.iter().enumerate() {
            let cells = cells(plain(&row.text)?)?;
            if number > 0 && cells.len() != columns.len() {
                return None;
            }
            for (position, (place, cast)) in cells.into_iter().enumerate() {
                let element = *types.get(place)?;
                let (_, array, size) = *ARRAYS.iter().find(|(one, ..)| *one == element)?;
                match columns.get(position) {
                    None => columns.push(Column {
                        element,
                        array,
                        cast: cast.to_owned(),
                    }),
                    Some(column) if column.element == element && column.cast == cast => {}
                    Some(_) => return None,
                }
                if !bound.bind.is_binary(place) && !TEXTS.contains(&element) {
                    return None;
                }
                let value = bound.bind.value(place);
                if size.is_some_and(|size| value.is_some_and(|value| value.len() != size)) {
                    return None;
                }
                places.push(place);
            }
        }
        let numbers = 1..=columns.len();
        let list = |each: &dyn Fn(usize) -> String| {
            let all: Vec<String> = numbers.clone().map(each).collect();
            all.join(", ")
        };
        let text = format!(
            "{head} SELECT {} FROM ROWS FROM ({}) AS a67 ({}){suffix}",
            list(&|n| format!("a67.c{n}{}", columns[n - 1].cast)),
            list(&|n| format!("pg_catalog.unnest(${n})")),
            list(&|n| format!("c{n}")),
        );
        Some(Arrays {
            text,
            columns,
            places,
        })
    }

    /// What a shard is sent for these rows.
    pub fn task(&self, shard: ShardId, rows: &[usize], bound: &Bound) -> Outcome<Task> {
        let mut body = BytesMut::new();
        message::put_string(&mut body, &bound.portal);
        message::put_string(&mut body, "");
        // All in binary.
        body.put_i16(1);
        body.put_i16(1);
        body.put_u16(self.columns.len() as u16);
        for (position, column) in self.columns.iter().enumerate() {
            let width = self.columns.len();
            let values = rows.iter().map(|row| {
                let place = self.places.get(row * width + position)?;
                bound.bind.value(*place)
            });
            put_array(&mut body, column.element, values);
        }
        body.extend_from_slice(&bound.bind.result_formats());
        Ok(Task {
            bound: Some(Bound {
                bind: message::bind(&body)?.into(),
                types: self.columns.iter().map(|column| column.array).collect(),
                ..bound.without_limit()
            }),
            ..Task::new(shard, self.text.clone())
        })
    }
}

/// The template, if it is the client's text as it stands and has no parameter in it, or if it is
/// a row.
fn plain(template: &[Piece]) -> Option<&str> {
    match template {
        [] => Some(""),
        [Piece::Text(text)] if text.starts_with('(') || !text.contains('$') => Some(text),
        _ => None,
    }
}

/// The parameters of `($1, $2::numeric(10,2))`, counted from 0, with their casts; `None` for any
/// other row.
fn cells(row: &str) -> Option<Vec<(usize, &str)>> {
    let mut rest = row.strip_prefix('(')?;
    let mut cells = Vec::new();
    loop {
        rest = rest.trim_start().strip_prefix('$')?;
        let digits = rest.find(|letter: char| !letter.is_ascii_digit())?;
        let number: usize = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let cast = cast(rest)?;
        cells.push((number.checked_sub(1)?, cast.trim_end()));
        rest = &rest[cast.len()..];
        if let Some(more) = rest.strip_prefix(',') {
            rest = more;
        } else {
            return (rest == ")").then_some(cells);
        }
    }
}

/// What of the text is a cast to a type with a plain name; it may be nothing but blanks.
fn cast(text: &str) -> Option<&str> {
    let is_blank = |letter: char| letter.is_ascii_whitespace();
    let blanks = text.len() - text.trim_start_matches(is_blank).len();
    let Some(name) = text[blanks..].strip_prefix("::") else {
        return text.get(..blanks);
    };
    let start = blanks + 2;
    let is_name =
        |letter: char| letter.is_ascii_alphanumeric() || letter == '_' || is_blank(letter);
    let mut end = start + name.find(|letter| !is_name(letter))?;
    if text[start..end].trim().is_empty() {
        return None;
    }
    if let Some(modifier) = text[end..].strip_prefix('(') {
        let is_number = |letter: char| letter.is_ascii_digit() || letter == ',' || is_blank(letter);
        let length = modifier.find(|letter| !is_number(letter))?;
        modifier[length..].strip_prefix(')')?;
        end += length + 2;
        let tail = &text[end..];
        end += tail.len() - tail.trim_start_matches(is_name).len();
    }
    text.get(..end)
}

/// A parameter value: an array of one dimension in binary, see `array_recv` in Postgres.
fn put_array<'v>(
    output: &mut BytesMut,
    element: u32,
    values: impl ExactSizeIterator<Item = Option<&'v [u8]>> + Clone,
) {
    let start = output.len();
    output.put_i32(0);
    output.put_i32(1);
    output.put_i32(i32::from(values.clone().any(|value| value.is_none())));
    output.put_u32(element);
    output.put_i32(values.len() as i32);
    output.put_i32(1);
    for value in values {
        match value {
            None => output.put_i32(-1),
            Some(value) => {
                output.put_i32(value.len() as i32);
                output.extend_from_slice(value);
            }
        }
    }
    let length = (output.len() - start - 4) as i32;
    output[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_parameters_are_told_from_others() {
        for (row, expected) in [
            ("($1)", Some(vec![(0, "")])),
            ("($3, $1)", Some(vec![(2, ""), (0, "")])),
            ("( $3 ,$1 )", Some(vec![(2, ""), (0, "")])),
            (
                "($1::INTEGER, $2::numeric(10, 2), $3)",
                Some(vec![(0, "::INTEGER"), (1, "::numeric(10, 2)"), (2, "")]),
            ),
            (
                "($1::timestamp(3) with time zone)",
                Some(vec![(0, "::timestamp(3) with time zone")]),
            ),
            ("()", None),
            ("($)", None),
            ("($0)", None),
            ("($1, 2)", None),
            ("($1 + 1)", None),
            ("($1, lower($2))", None),
            ("($1::int::text)", None),
            ("($1::\"my type\")", None),
            ("($1::int[])", None),
            ("($1::)", None),
            ("($1::numeric(10)", None),
            ("($1::numeric(x))", None),
            ("($1, DEFAULT)", None),
            ("($1) ", None),
            ("($1", None),
            ("($1,)", None),
            ("$1", None),
            ("($99999999999999999999)", None),
            ("($1 /* $2 */)", None),
        ] {
            assert_eq!(cells(row), expected, "{row}");
        }
    }

    #[test]
    fn arrays_are_as_the_server_reads_them() {
        let mut output = BytesMut::new();
        let values: [Option<&[u8]>; 2] = [Some(b"ab"), None];
        put_array(&mut output, 25, values.into_iter());
        assert_eq!(
            output[..],
            *b"\0\0\0\x1e\0\0\0\x01\0\0\0\x01\0\0\0\x19\0\0\0\x02\0\0\0\x01\0\0\0\x02ab\xff\xff\xff\xff"
        );
    }
}
