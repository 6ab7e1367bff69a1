use proptest::prelude::*;

use super::*;

fn text() -> CopyFormat {
    CopyFormat::Text {
        delimiter: b'\t',
        null: "\\N".to_owned(),
        header: false,
    }
}

fn csv() -> CopyFormat {
    CopyFormat::Csv {
        delimiter: b',',
        null: String::new(),
        header: false,
        quote: b'"',
        escape: b'"',
    }
}

/// Cuts `data`, arriving in pieces of `piece` bytes, into rows.
fn rows(format: &CopyFormat, data: &[u8], piece: usize) -> Vec<Vec<u8>> {
    let mut buffer = Vec::new();
    let mut scan = Scan::default();
    let mut rows = Vec::new();
    for part in data.chunks(piece) {
        buffer.extend_from_slice(part);
        while let Ok(Piece::Row(size)) = next_row(format, &buffer, &mut scan) {
            rows.push(buffer.drain(..size).collect());
        }
    }
    rows
}

fn check(format: &CopyFormat, row: &[u8], index: usize, expected: Option<&str>) {
    let value = field(format, row, index).expect("a field");
    assert_eq!(
        value.as_deref(),
        expected.map(str::as_bytes),
        "{:?}",
        String::from_utf8_lossy(row)
    );
}

#[test]
fn text_rows_end_at_line_feeds_that_are_not_escaped() {
    for piece in 1..8 {
        assert_eq!(
            rows(&text(), b"1\ta\\\nb\n2\t\\\\\n3\tx\n", piece),
            [&b"1\ta\\\nb\n"[..], b"2\t\\\\\n", b"3\tx\n"]
        );
    }
    assert_eq!(
        next_row(&text(), b"\\.\nrest\n", &mut Scan::default()),
        Ok(Piece::End)
    );
}

#[test]
fn text_fields_are_unescaped() {
    check(&text(), b"1\ta\\tb\n", 1, Some("a\tb"));
    check(&text(), b"\\x41\\102\\N\t2\n", 0, Some("ABN"));
    check(&text(), b"\\N\t2\n", 0, None);
    check(&text(), b"a\\\tb\tc\n", 0, Some("a\tb"));
    check(&text(), b"\t2\n", 0, Some(""));
    assert_eq!(
        field(&text(), b"1\t2\n", 2),
        Err(RowError::MissingColumn(3))
    );
}

#[test]
fn csv_rows_may_hold_line_feeds_in_quotes() {
    for piece in 1..8 {
        assert_eq!(
            rows(&csv(), b"1,\"a\nb\"\n2,\"\"\"\n\"\n3,x\n", piece),
            [&b"1,\"a\nb\"\n"[..], b"2,\"\"\"\n\"\n", b"3,x\n"]
        );
    }
}

#[test]
fn csv_fields_lose_their_quotes() {
    check(&csv(), b"1,\"a,\"\"b\"\n", 1, Some("a,\"b"));
    check(&csv(), b",x\n", 0, None);
    check(&csv(), b"\"\",x\n", 0, Some(""));
    check(&csv(), b"a\"b,c\"d,e\n", 0, Some("ab,cd"));
    assert_eq!(field(&csv(), b"1,2\n", 2), Err(RowError::MissingColumn(3)));
    let backslash = CopyFormat::Csv {
        delimiter: b';',
        null: "NULL".to_owned(),
        header: false,
        quote: b'\'',
        escape: b'\\',
    };
    check(&backslash, b"'a\\'b;c';NULL\n", 0, Some("a'b;c"));
    check(&backslash, b"'a';NULL\n", 1, None);
}

#[test]
fn tuples_say_their_length() {
    let mut tuple = BytesMut::new();
    tuple.put_i16(2);
    tuple.put_i32(4);
    tuple.put_i32(7);
    tuple.put_i32(-1);
    let format = CopyFormat::Binary;
    for cut in 0..tuple.len() {
        assert_eq!(
            next_row(&format, &tuple[..cut], &mut Scan::default()),
            Ok(Piece::More)
        );
    }
    assert_eq!(
        next_row(&format, &tuple, &mut Scan::default()),
        Ok(Piece::Row(14))
    );
    assert_eq!(
        field(&format, &tuple, 0),
        Ok(Some(Cow::Borrowed(&[0, 0, 0, 7][..])))
    );
    assert_eq!(field(&format, &tuple, 1), Ok(None));
    assert_eq!(field(&format, &tuple, 2), Err(RowError::MissingColumn(3)));
    assert_eq!(
        next_row(&format, b"\xff\xff", &mut Scan::default()),
        Ok(Piece::End)
    );
    assert_eq!(
        next_row(&format, b"\xff\xfe", &mut Scan::default()),
        Err(RowError::FieldSize)
    );
    let negative = b"\0\x01\xff\xff\xff\xfe";
    assert_eq!(
        next_row(&format, negative, &mut Scan::default()),
        Err(RowError::FieldSize)
    );
}

#[test]
fn binary_headers_are_checked() {
    assert_eq!(binary_header(BINARY_HEADER), Ok(Some(19)));
    assert_eq!(binary_header(&BINARY_HEADER[..10]), Ok(None));
    assert_eq!(binary_header(b"PGCOPX"), Err(RowError::Signature));
    let mut flags = BINARY_HEADER.to_vec();
    flags[12] = 1;
    assert_eq!(binary_header(&flags), Err(RowError::Flags));
}

proptest! {
    #[test]
    fn text_rows_read_back_what_was_written(
        values in proptest::collection::vec(proptest::option::of(proptest::collection::vec(any::<u8>(), 0..12)), 1..5),
        piece in 1usize..9,
    ) {
        let mut data = BytesMut::new();
        put_text_row(&mut data, values.iter().map(Option::as_deref));
        let cut = rows(&text(), &data, piece);
        prop_assert_eq!(cut.len(), 1);
        for (index, value) in values.iter().enumerate() {
            let read = field(&text(), &cut[0], index).expect("a field");
            prop_assert_eq!(read.as_deref(), value.as_deref());
        }
    }
}

proptest! {
    #[test]
    fn fields_behind_a_row_are_read_back(value in "[ -~\t\n\r\\\\x\"]{0,8}", null in "(\\\\N|NULL|x|2)") {
        let quoting = |quote, escape| CopyFormat::Csv {
            delimiter: b'|',
            null: null.clone(),
            header: false,
            quote,
            escape,
        };
        let formats = [
            CopyFormat::Text { delimiter: b'|', null: null.clone(), header: false },
            quoting(b'"', b'"'),
            quoting(b'\'', b'\\'),
        ];
        for format in formats {
            let mut tail = Tail::default();
            tail.push(&format, Some(value.as_bytes()));
            tail.push(&format, None);
            let mut row = BytesMut::new();
            put_row(&mut row, &format, b"1\n", &tail);
            prop_assert_eq!(next_row(&format, &row, &mut Scan::default()), Ok(Piece::Row(row.len())));
            check(&format, &row, 0, Some("1"));
            check(&format, &row, 1, Some(&value));
            check(&format, &row, 2, None);
        }
    }
}

#[test]
fn fields_behind_a_tuple_are_counted() {
    let mut tail = Tail::default();
    tail.push(&CopyFormat::Binary, Some(b"ab"));
    tail.push(&CopyFormat::Binary, None);
    let mut row = BytesMut::new();
    put_row(&mut row, &CopyFormat::Binary, b"\0\x01\0\0\0\x01x", &tail);
    assert_eq!(&row[..], b"\0\x03\0\0\0\x01x\0\0\0\x02ab\xff\xff\xff\xff");
}

/// What is made of data that arrives byte by byte: rows, and how it ends.
fn cut(format: &CopyFormat, version: u32, data: &str) -> String {
    let mut buffer = BytesMut::new();
    let mut scan = Scan::of(version);
    let mut told = String::new();
    let mut more = data.bytes();
    loop {
        match next_row(format, &buffer, &mut scan) {
            Ok(Piece::Row(size)) => {
                let row = buffer.split_to(size);
                told.push_str(&format!("{:?} ", String::from_utf8_lossy(&row)));
            }
            Ok(Piece::Last(size)) => {
                let row = &buffer[..size];
                return format!("{told}{:?} end", String::from_utf8_lossy(row));
            }
            Ok(Piece::End) => return format!("{told}end"),
            Ok(Piece::More) => match more.next() {
                Some(byte) => buffer.put_u8(byte),
                None if buffer.is_empty() => return told.trim_end().to_owned(),
                None => match end_line(format, &mut buffer, &mut scan) {
                    Ok(()) => {
                        let row = String::from_utf8_lossy(&buffer);
                        return format!("{told}{row:?}");
                    }
                    Err(error) => return format!("{told}{error}"),
                },
            },
            Err(error) => return format!("{told}{error}"),
        }
    }
}

#[test]
fn lines_end_as_the_first_one_does() {
    for (data, expected) in [
        ("a\nb\n", r#""a\n" "b\n""#),
        ("a\r\nb\r\n", r#""a\r\n" "b\r\n""#),
        ("a\rb\r", r#""a\r" "b\r""#),
        ("a\rb", r#""a\r" "b\r""#),
        ("a\r\nb", r#""a\r\n" "b\r\n""#),
        ("a", r#""a\n""#),
        ("a\nb\r\n", r#""a\n" literal carriage return found in data"#),
        ("a\r\nb\n", r#""a\r\n" literal newline found in data"#),
        (
            "a\r\nb\rc",
            r#""a\r\n" literal carriage return found in data"#,
        ),
        ("a\rb\n", r#""a\r" literal newline found in data"#),
        ("a\\\r\nb\\\n\n", r#""a\\\r\n" "b\\\n\n""#),
        ("a\\", r#""a\n""#),
    ] {
        assert_eq!(cut(&text(), 15, data), expected, "{data:?}");
        let csv_data = data.replace('\\', "");
        if csv_data == data {
            let expected = expected.replace("literal", "unquoted");
            assert_eq!(cut(&csv(), 15, data), expected, "{data:?}");
        }
    }
    let quoted = "1,\"a\r\nb\rc\"\n2,\"\n\"\n";
    assert_eq!(
        cut(&csv(), 15, quoted),
        r#""1,\"a\r\nb\rc\"\n" "2,\"\n\"\n""#
    );
}

#[test]
fn data_end_where_the_servers_say() {
    let (corrupt, alone) = (
        "end-of-copy marker corrupt",
        "end-of-copy marker is not alone on its line",
    );
    let style = "end-of-copy marker does not match previous newline style";
    for (data, older, newer) in [
        ("a\n\\.\nb\n", r#""a\n" end"#, r#""a\n" end"#),
        ("a\r\n\\.\r\nb", r#""a\r\n" end"#, r#""a\r\n" end"#),
        ("a\r\\.\rb", r#""a\r" end"#, r#""a\r" end"#),
        ("\\.\r\n", "end", "end"),
        ("a\n\\.\r\n", style, style),
        ("a\r\n\\.\n", style, style),
        ("a\\.\nb\n", r#""a" end"#, alone),
        ("a\n\\.x\n", corrupt, alone),
        ("a\n\\.", corrupt, alone),
        ("a\\\\.\n", r#""a\\\\.\n""#, r#""a\\\\.\n""#),
    ] {
        for (version, expected) in [(15, older), (18, newer)] {
            let told = cut(&text(), version, data);
            assert!(told.ends_with(expected), "{version} {data:?}: {told}");
        }
    }
    for (data, older, newer) in [
        ("a\n\\.\nb\n", r#""a\n" end"#, r#""a\n" "\\.\n" "b\n""#),
        ("\\.\n", "end", r#""\\.\n""#),
        ("a\n\\.", r#""a\n" "\\.\n""#, r#""a\n" "\\.\n""#),
        ("\\.x\n", r#""\\.x\n""#, r#""\\.x\n""#),
        ("a\\.\n", r#""a\\.\n""#, r#""a\\.\n""#),
        (
            "\"a\n\\.\n\"\n",
            r#""\"a\n\\.\n\"\n""#,
            r#""\"a\n\\.\n\"\n""#,
        ),
        (
            "a\n\\.\r\n",
            style,
            "unquoted carriage return found in data",
        ),
        (
            "a\r\n\\.\n",
            "unquoted newline found in data",
            "unquoted newline found in data",
        ),
    ] {
        for (version, expected) in [(15, older), (18, newer)] {
            let told = cut(&csv(), version, data);
            assert!(told.ends_with(expected), "{version} {data:?}: {told}");
        }
    }
}
