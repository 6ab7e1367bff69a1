use super::*;

fn answer(rows: &[[&str; 2]]) -> Answer {
    let row = |row: &[&str; 2]| row.iter().map(|value| Some((*value).to_owned())).collect();
    Answer {
        columns: vec!["name".to_owned(), "value".to_owned()],
        rows: rows.iter().map(row).collect(),
    }
}

#[test]
fn the_last_order_counts() {
    let text = "select 1 order by 2) order by\n    value desc,\n    name\nlimit 20;";
    assert_eq!(order_columns(text), ["value", "name"]);
    assert_eq!(order_columns("select 1;"), [""; 0]);
    for (name, text) in QUERIES {
        for column in order_columns(text) {
            let letters = |letter: char| letter.is_ascii_alphabetic() || letter == '_';
            assert!(column.chars().all(letters), "{name} orders by {column:?}");
        }
    }
}

#[test]
fn ties_may_come_in_any_order() {
    let ours = answer(&[["a", "1"], ["b", "1"], ["c", "2"]]);
    let plain = answer(&[["b", "1"], ["a", "1"], ["c", "2"]]);
    assert!(only_ties_differ("order by value", &ours, &plain));
    assert!(only_ties_differ("select", &ours, &plain));
    assert!(!only_ties_differ("order by value, name", &ours, &plain));
    assert!(!only_ties_differ("order by another", &ours, &plain));
}
