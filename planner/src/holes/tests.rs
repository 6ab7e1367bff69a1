use super::{average, in_last, next, now, rows, template, type_name};
use crate::{
    parse,
    plan::{FinalPiece, Piece},
};

fn text(text: &str) -> Piece {
    Piece::Text(text.to_owned())
}

#[test]
fn a_text_is_cut_at_its_holes() {
    let sql = format!("select {}, a, ({})::int", now(), next(3));
    assert!(parse::parse_one(&sql).is_some());
    let pieces = [
        text("select "),
        Piece::Now,
        text(", a, ("),
        Piece::Sequence(3),
        text(")::int"),
    ];
    assert_eq!(template(&sql), pieces);
}

#[test]
fn a_last_statement_has_holes_of_its_own() {
    let sql = format!(
        "select x::{}, {} from {}",
        type_name(1),
        average(2, 10),
        rows()
    );
    assert!(parse::parse_one(&sql).is_some());
    let pieces = [
        FinalPiece::Piece(text("select x::")),
        FinalPiece::Type(1),
        FinalPiece::Piece(text(", ")),
        FinalPiece::Average { sum: 2, count: 10 },
        FinalPiece::Piece(text(" from ")),
        FinalPiece::Rows,
    ];
    assert_eq!(in_last(vec![Piece::Text(sql)]), pieces);
}

#[test]
fn what_looks_like_a_hole_is_text() {
    for own in [
        "",
        "select 'automator67:now'",
        "select 'automator67:00:now'",
    ] {
        let pieces: Vec<Piece> = [own]
            .into_iter()
            .filter(|own| !own.is_empty())
            .map(text)
            .collect();
        assert_eq!(template(own), pieces);
    }
}
