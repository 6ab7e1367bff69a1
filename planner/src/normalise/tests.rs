use proptest::prelude::*;

use super::*;

/// The normalised text with literals shown as `‹class:literal›`, and the number of statements.
fn show(text: &str) -> Option<(String, usize)> {
    let mut normalised = Normalised::default();
    normalise(text, &mut normalised).then(|| {
        let mut shown = normalised
            .text
            .replace("\x01i", "?i")
            .replace("\x01n", "?n");
        shown = shown.replace("\x01s", "?s");
        (shown, normalised.statements)
    })
}

fn check(text: &str, expected: &str) {
    assert_eq!(
        show(text).map(|(shown, _)| shown).as_deref(),
        Some(expected),
        "{text:?}"
    );
}

fn statements(text: &str, expected: usize) {
    assert_eq!(
        show(text).map(|(_, statements)| statements),
        Some(expected),
        "{text:?}"
    );
}

fn refused(text: &str) {
    assert_eq!(show(text), None, "{text:?}");
}

#[test]
fn cuts_plain_literals() {
    check("select 1", "select ?i");
    check(
        "select * from t where id = 42 and n='it''s'",
        "select * from t where id = ?i and n=?s",
    );
    check("values (1,-2,+3)", "values (?i,-?i,+?i)");
    check(
        "select 1.5, .5, 1., 1e10, 1.5e-10, .5E+3",
        "select ?n, ?n, ?n, ?n, ?n, ?n",
    );
    check("date'2024-01-01'", "date?s");
    check("'a' 'b'", "?s ?s");
    check("''", "?s");
    check("a[1:2] 1..2", "a[?i:?i] ?i..?i");
    check("x=1--1", "x=?i--1");
    check("9223372036854775807", "?i");
    check("SELECT\t'Ä'  ,\n1", "SELECT\t?s  ,\n?i");
}

#[test]
fn copies_all_else() {
    for text in [
        "",
        "   ",
        "t1.a_2",
        "ä1",
        "$1 + $23",
        "a$1",
        "\"it's 1\" \"a\"\"1\"",
        "E'a\\'1' e'\\\\'",
        "B'01' x'1F' N'1'",
        "$$it's 1$$ $a$ $$ 1 $b$ $a$",
        "-- it's 1\n",
        "-- it's 1",
        "/* it's /* 1 */ 1 */",
        "0x1F 0b01 0o17 1_000 1_000.5",
        "1a 1.5a 1e 1e+x",
        "9223372036854775808 12345678901234567890",
        "*/*'*/",
        "@-@ <-> |/ !!",
        "$ a$b$c",
    ] {
        check(text, text);
    }
}

#[test]
fn refuses_what_it_cannot_cut_for_certain() {
    for text in [
        "'a",
        "'a''",
        "\"a",
        "E'a\\'",
        "$$a",
        "$a$ $b$",
        "/* a",
        "/* /* */",
        "/*/",
        "'a'\n'b'",
        "'a' -- c\n  'b'",
        "E'a'\n'b'",
        "select U&'d!0061' UESCAPE '!'",
        "select U&\"d!0061\" UESCAPE '!'",
        "1e'a\\'b'",
        "0x'1'",
        "1u&'x'",
        "1a$$'$$",
        "select \x01i",
    ] {
        refused(text);
    }
}

#[test]
fn counts_statements() {
    statements("", 0);
    statements(" ; ; -- nothing\n ;", 0);
    statements("select 1", 1);
    statements("select 1;", 1);
    statements("select 1; /* ; */ ;; select ';' ", 2);
    statements("create rule r as on insert to t do (select 1; select 2)", 1);
    statements(") ; select 1", 2);
}

#[test]
fn reuses_what_it_fills() {
    let mut normalised = Normalised::default();
    assert!(normalise("select 'a', 1; select 2", &mut normalised));
    assert!(normalise("select 3", &mut normalised));
    assert_eq!(
        (normalised.text.as_str(), normalised.statements),
        ("select \x01i", 1)
    );
    let three = Literal {
        start: 7,
        end: 8,
        class: LiteralClass::Integer,
    };
    assert_eq!(normalised.literals, [three]);
}

#[test]
fn literals_have_values() {
    let text = "select 'it''s', 'plain', 1.50, 7";
    let mut normalised = Normalised::default();
    assert!(normalise(text, &mut normalised));
    let values: Vec<_> = normalised
        .literals
        .iter()
        .map(|literal| literal.unquoted(text))
        .collect();
    assert_eq!(values, ["it's", "plain", "1.50", "7"]);
    let spelled: Vec<_> = normalised
        .literals
        .iter()
        .map(|literal| literal.spelled(text))
        .collect();
    assert_eq!(spelled, ["'it''s'", "'plain'", "1.50", "7"]);
}

#[test]
fn tokens_know_their_depth() {
    let text = "insert into t values (1, (2)), (a[3], $1::int)";
    let shown: Vec<_> = tokens(text)
        .iter()
        .map(|token| format!("{}{}", &text[token.start..token.end], token.depth))
        .collect();
    let expected =
        "insert0 into0 t0 values0 (0 11 ,1 (1 22 )1 )0 ,0 (0 a1 [1 32 ]1 ,1 $11 ::1 int1 )0";
    assert_eq!(shown.join(" "), expected);
    let text = "a \"b\" u&\"c\" 'd' E'e'\n'f' 1 $1 , <=";
    let kinds: Vec<TokenKind> = tokens(text).iter().map(|token| token.kind).collect();
    let expected = [
        TokenKind::Word,
        TokenKind::QuotedIdentifier,
        TokenKind::QuotedIdentifier,
        TokenKind::String,
        TokenKind::String,
        TokenKind::Number,
        TokenKind::Parameter,
        TokenKind::Punctuation(','),
        TokenKind::Operator,
    ];
    assert_eq!(kinds, expected);
}

#[test]
fn tokens_stop_where_a_quote_has_no_end() {
    assert_eq!(tokens("a 'b").len(), 1);
    assert_eq!(tokens("a ) ) (").len(), 4);
}

/// What statements are made of, and what breaks lexers.
fn fragment() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        " ",
        " ",
        " ",
        "\n",
        "\t",
        "a",
        "t1",
        "select",
        "e",
        "E",
        "u&",
        "U&",
        "x",
        "b",
        "n",
        "_1",
        "é",
        "1",
        "42",
        "1.5",
        ".5",
        "1.",
        "e5",
        "e+5",
        "0x1F",
        "1_0",
        "..",
        ".",
        ",",
        "(",
        ")",
        "[",
        "]",
        ";",
        ":",
        "::",
        ":=",
        "=",
        "<=",
        "<>",
        "->",
        "->>",
        "+",
        "-",
        "--",
        "--c\n",
        "/",
        "*",
        "/*",
        "*/",
        "/*c*/",
        "@",
        "?",
        "|",
        "'",
        "''",
        "'a'",
        "'a\\'",
        "\"",
        "\"q\"",
        "\"\"",
        "$",
        "$1",
        "$$",
        "$a$",
        "$a$x$a$",
        "\\",
        "%",
        "#",
        "!",
        "~",
        "^",
        "&",
        "`",
        "9223372036854775808",
    ])
}

fn text() -> impl Strategy<Value = String> {
    prop::collection::vec(fragment(), 0..20).prop_map(|fragments| fragments.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn literals_put_back_give_the_text(text in prop_oneof![text(), "[ -~\n]{0,40}", "\\PC{0,40}"]) {
        let mut normalised = Normalised::default();
        if normalise(&text, &mut normalised) {
            let mut pieces = normalised.text.split('\x01');
            let mut restored = pieces.next().unwrap_or_default().to_owned();
            for (piece, literal) in pieces.zip(&normalised.literals) {
                restored.push_str(literal.spelled(&text));
                restored.push_str(&piece[1..]);
            }
            prop_assert_eq!(restored, text);
        }
    }

    /// The server's own scanner is the referee: where it can read a text, the tokens are the same.
    #[test]
    fn tokens_are_the_servers(text in text()) {
        if let Ok(scanned) = pg_query::scan(&text) {
            let comment = |token: &&pg_query::protobuf::ScanToken| {
                !matches!(
                    pg_query::protobuf::Token::try_from(token.token),
                    Ok(pg_query::protobuf::Token::SqlComment | pg_query::protobuf::Token::CComment)
                )
            };
            let expected: Vec<&str> = scanned
                .tokens
                .iter()
                .filter(comment)
                .map(|token| &text[token.start as usize..token.end as usize])
                .collect();
            // The server sees `N'...'` as the word NCHAR and a string.
            let split_nchar = |token: &Token| {
                let text = &text[token.start..token.end];
                let string = text.strip_prefix(['n', 'N']).filter(|rest| rest.starts_with('\''));
                match string {
                    Some(string) => vec![&text[..1], string],
                    None => vec![text],
                }
            };
            let ours: Vec<&str> = tokens(&text).iter().flat_map(split_nchar).collect();
            prop_assert_eq!(ours, expected);
        }
    }

    /// Texts of one normalised form have the same tokens but for their literals.
    #[test]
    fn other_literals_change_nothing_else(text in text(), number in 0u32..1000, string in "[a-z ]{0,5}") {
        let mut normalised = Normalised::default();
        if normalise(&text, &mut normalised) {
            let other = normalised.literals.iter().rev().fold(text.clone(), |mut other, literal| {
                let replacement = match literal.class {
                    LiteralClass::Integer => number.to_string(),
                    LiteralClass::Number if literal.spelled(&text).starts_with('.') => {
                        format!(".{number}")
                    }
                    LiteralClass::Number => format!("{number}.5"),
                    LiteralClass::String => format!("'{string}'"),
                };
                other.replace_range(literal.start..literal.end, &replacement);
                other
            });
            let mut again = Normalised::default();
            prop_assert!(normalise(&other, &mut again), "{:?} but not {:?}", text, other);
            prop_assert_eq!(&normalised.text, &again.text);
            prop_assert_eq!(normalised.statements, again.statements);
        }
    }
}

/// A text that the grammar reads faster, with all its tokens where they were.
fn is_the_same_text(text: &str) {
    let Some(readable) = without_traps(text) else {
        return;
    };
    assert_eq!(readable.len(), text.len(), "{text:?}");
    let tree = |text: &str| pg_query::parse(text, 0).map(|tree| tree.protobuf);
    let (before, after) = (tree(text), tree(&readable));
    match (before, after) {
        (Ok(before), Ok(after)) => assert_eq!(before, after, "{text:?}"),
        (Err(_), Err(_)) => {}
        (before, after) => panic!("{text:?}: {:?}, {:?}", before.is_ok(), after.is_ok()),
    }
}

#[test]
fn comments_in_comments_are_blanked_and_nothing_else() {
    let blanked = |text: &str| without_traps(text).map(|text| text.into_owned());
    for same in [
        "select 1",
        "select 1 /* one */ + /* two *//**/ 2",
        "select '/* /* */ */', \"/* /* */ */\", $$ /* /* */ */ $$, E'\\'/* /* */ */'",
        "select 1 -- /* /* */ */\n+ 1",
        "select 1 +/* x */-1",
    ] {
        assert_eq!(blanked(same).as_deref(), Some(same));
        is_the_same_text(same);
    }
    let nested = "select 'a' /* ä /* it's */ \n */ /*/*/**/*/*/ , 2";
    let expected = "select 'a' /*                 */ /*        */ , 2";
    assert_eq!(blanked(nested).as_deref(), Some(expected));
    is_the_same_text(nested);
    // One without an end stays one.
    assert_eq!(
        blanked("select 1 /* /* */").as_deref(),
        Some("select 1 /*      ")
    );
    is_the_same_text("select 1 /* /* */");
    is_the_same_text("select 'a' /* /* */ \n */ \n 'b'");
}

#[test]
fn endless_operators_are_not_read() {
    assert!(without_traps(&format!("select 1 {} 1", "-+".repeat(100))).is_some());
    assert!(without_traps(&format!("select 1 {} 1", "-+".repeat(10_000))).is_none());
    assert!(without_traps(&format!("select '{}'", "-+".repeat(10_000))).is_some());
    assert!(without_traps(&format!("select 1 {}", "-".repeat(10_000))).is_some());
    refused(&format!("select 1 {} 1", "-+".repeat(10_000)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn blanked_comments_change_no_tree(
        pieces in prop::collection::vec(prop_oneof![
            Just("/*"), Just("*/"), Just("/* /* */ */"), Just("'"), Just("\""), Just("$$"), Just("E'\\"),
            Just("\n"), Just("--"), Just("+"), Just(" 1 "), Just(" a "), Just(" + 1 "), Just("*"), Just("/"),
        ], 0..24)
    ) {
        is_the_same_text(&format!("select 1 {}", pieces.concat()));
        is_the_same_text(&format!("select 'x' {} 'y'", pieces.concat()));
    }
}
