//! Holes of SQL that our own parser still has to read.
//!
//! A statement that is rewritten is often planned once more, as a text, before it is cut into the
//! pieces of a plan. Until then a constant or a name stands for what an executor fills in. It holds
//! a number that is drawn once per process and is in no plan, so it is never a client's own text.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    sync::LazyLock,
};

use crate::plan::{FinalPiece, Piece, Template};

/// What every hole has in it.
static MARK: LazyLock<String> = LazyLock::new(|| {
    let number = || RandomState::new().build_hasher().finish();
    format!("automator67:{:016x}{:016x}:", number(), number())
});

/// The transaction's time, as a constant.
pub(crate) fn now() -> String {
    format!("'{}now'", *MARK)
}

/// A call of `nextval` for the n-th of a plan's sequences.
pub(crate) fn next(sequence: usize) -> String {
    format!("nextval('{}{sequence}')", *MARK)
}

/// The partial results, as an item of FROM.
pub(crate) fn rows() -> String {
    format!("\"{}rows\"", *MARK)
}

/// The name of the n-th column's type.
pub(crate) fn type_name(column: usize) -> String {
    format!("\"{}type {column}\"", *MARK)
}

/// The average of sums by numbers of values, where columns have them.
pub(crate) fn average(sum: usize, count: usize) -> String {
    format!("\"{}average {sum} {count}\"", *MARK)
}

/// A text as pieces.
pub(crate) fn template(text: &str) -> Template {
    cut(text)
        .into_iter()
        .filter_map(|piece| match piece {
            FinalPiece::Piece(piece) => Some(piece),
            // Only a last statement has others.
            FinalPiece::Rows | FinalPiece::Type(_) | FinalPiece::Average { .. } => None,
        })
        .collect()
}

/// Pieces whose texts may have holes in them.
pub(crate) fn in_pieces(pieces: Template) -> Template {
    pieces
        .into_iter()
        .flat_map(|piece| match piece {
            Piece::Text(text) => template(&text),
            other => vec![other],
        })
        .collect()
}

/// The same for pieces of a last statement.
pub(crate) fn in_last(pieces: Template) -> Vec<FinalPiece> {
    pieces
        .into_iter()
        .flat_map(|piece| match piece {
            Piece::Text(text) => cut(&text),
            other => vec![FinalPiece::Piece(other)],
        })
        .collect()
}

fn cut(text: &str) -> Vec<FinalPiece> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some((before, name, behind)) = first(rest) {
        push_text(&mut pieces, before);
        pieces.push(name);
        rest = behind;
    }
    push_text(&mut pieces, rest);
    pieces
}

fn push_text(pieces: &mut Vec<FinalPiece>, text: &str) {
    if !text.is_empty() {
        pieces.push(FinalPiece::Piece(Piece::Text(text.to_owned())));
    }
}

/// The first hole of a text, with what is around it.
fn first(text: &str) -> Option<(&str, FinalPiece, &str)> {
    let (before, behind) = text.split_once(MARK.as_str())?;
    let quote = before.chars().next_back()?;
    let before = &before[..before.len() - quote.len_utf8()];
    let (name, behind) = behind.split_once(quote)?;
    let words: Vec<&str> = name.split(' ').collect();
    let hole = match words.as_slice() {
        ["now"] => FinalPiece::Piece(Piece::Now),
        ["rows"] => FinalPiece::Rows,
        ["type", column] => FinalPiece::Type(column.parse().ok()?),
        ["average", sum, count] => FinalPiece::Average {
            sum: sum.parse().ok()?,
            count: count.parse().ok()?,
        },
        [sequence] => {
            let next = Piece::Sequence(sequence.parse().ok()?);
            let before = before.strip_suffix("nextval(")?;
            return Some((before, FinalPiece::Piece(next), behind.strip_prefix(')')?));
        }
        _ => return None,
    };
    Some((before, hole, behind))
}

#[cfg(test)]
mod tests;
