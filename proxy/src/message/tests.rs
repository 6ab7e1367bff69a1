use super::*;

fn bind_body(formats: &[i16], values: &[Option<&[u8]>], results: &[i16]) -> BytesMut {
    let mut body = BytesMut::new();
    put_string(&mut body, "p");
    put_string(&mut body, "s");
    body.put_i16(formats.len() as i16);
    formats.iter().for_each(|format| body.put_i16(*format));
    body.put_i16(values.len() as i16);
    for value in values {
        match value {
            None => body.put_i32(-1),
            Some(value) => {
                body.put_i32(value.len() as i32);
                body.extend_from_slice(value);
            }
        }
    }
    body.put_i16(results.len() as i16);
    results.iter().for_each(|format| body.put_i16(*format));
    body
}

#[test]
fn every_truncation_of_a_message_is_an_error_and_no_panic() {
    let mut parse_body = BytesMut::new();
    put_string(&mut parse_body, "s");
    put_string(&mut parse_body, "select $1");
    parse_body.put_i16(1);
    parse_body.put_i32(23);
    assert!(parse(&parse_body).is_ok());
    for cut in 0..parse_body.len() {
        assert!(parse(&parse_body[..cut]).is_err(), "parse cut at {cut}");
    }
    let body = bind_body(&[1], &[Some(b"abcd"), None], &[0, 1]);
    assert!(bind(&body).is_ok());
    for cut in 0..body.len() {
        assert!(bind(&body[..cut]).is_err(), "bind cut at {cut}");
    }
    for cut in 0..5 {
        assert!(
            execute(&b"p\0\0\0\0\x05"[..cut]).is_err(),
            "execute cut at {cut}"
        );
    }
}

#[test]
fn bytes_after_the_end_are_an_error() {
    assert!(query(b"select 1\0x").is_err());
    assert!(named(b"Sname\0x", "DESCRIBE").is_err());
    assert!(named(b"Xname\0", "DESCRIBE").is_err());
}

#[test]
fn a_bind_keeps_its_bytes_and_finds_its_values() {
    let body = bind_body(&[0, 1], &[Some(b"12"), Some(b"\0\x01")], &[1]);
    let bind = bind(&body).expect("valid");
    assert_eq!((bind.portal.as_str(), bind.statement.as_str()), ("p", "s"));
    assert_eq!(bind.value(0), Some(&b"12"[..]));
    assert_eq!(bind.value(1), Some(&b"\0\x01"[..]));
    assert_eq!(bind.value(2), None);
    assert_eq!((bind.is_binary(0), bind.is_binary(1)), (false, true));
    assert_eq!([bind.parameters(), &[0, 1, 0, 1]].concat(), bind.rest);
}

#[test]
fn a_bind_with_more_formats_than_values_is_refused() {
    assert!(bind(&bind_body(&[0, 1, 1], &[None], &[])).is_err());
    assert!(bind(&bind_body(&[1], &[], &[])).is_ok());
}

#[test]
fn negative_value_lengths_other_than_null_are_refused() {
    let mut body = BytesMut::from(&b"p\0s\0\0\0\0\x01"[..]);
    body.put_i32(-2);
    body.put_i16(0);
    assert!(bind(&body).is_err());
}

#[test]
fn row_descriptions_lose_their_tables_and_nothing_else() {
    let mut frame = BytesMut::new();
    framed(&mut frame, b'T', |body| {
        body.put_i16(2);
        for name in ["a", "bc"] {
            put_string(body, name);
            body.put_u32(99_999);
            body.put_i16(3);
            body.put_u32(23);
            body.put_i16(4);
            body.put_i32(-1);
            body.put_i16(0);
        }
    });
    let mut expected = BytesMut::new();
    put_row_description(&mut expected, &[("a", 23, 4), ("bc", 23, 4)]);
    forget_tables(&mut frame);
    assert_eq!(frame, expected);
}

#[test]
fn malformed_rows_are_none() {
    assert_eq!(data_row(b""), None);
    assert_eq!(data_row(b"\0\x01\0\0\0\x05abc"), None);
    assert_eq!(data_row(b"\0\x01\xff\xff\xff\xff"), Some(vec![None]));
    assert_eq!(parameter_types(b"\0\x02\0\0\0\x17"), None);
}

#[test]
fn a_command_complete_is_split_off_the_end() {
    let mut output = BytesMut::new();
    put_text_row(&mut output, &[Some("C\0\0\0\u{9}INSERT")]);
    let rows = output.clone();
    assert!(split_complete(&mut output).is_empty());
    assert_eq!(output, rows);
    for tag in ["INSERT 0 3", "", "CREATE TABLE"] {
        put_command_complete(&mut output, tag);
        let complete = split_complete(&mut output);
        assert_eq!(command_tag(&complete[5..]), tag);
        assert_eq!(output, rows);
    }
    let mut short = BytesMut::from(&b"C\0"[..]);
    assert!(split_complete(&mut short).is_empty());
}

#[test]
fn takes_a_field_out_of_an_error() {
    let mut frame = BytesMut::new();
    framed(&mut frame, b'E', |body| {
        body.extend_from_slice(b"SERROR\0C23505\0P12\0nkey\0\0");
    });
    let mut expected = BytesMut::new();
    framed(&mut expected, b'E', |body| {
        body.extend_from_slice(b"SERROR\0C23505\0nkey\0\0");
    });
    forget_field(&mut frame, b'P');
    assert_eq!(frame, expected);
    forget_field(&mut frame, b'x');
    assert_eq!(frame, expected);
    put_field(&mut frame, b'n', "other");
    assert_eq!(error_field(&frame[HEADER_BYTES..], b'n'), Some("other"));
    assert_eq!(error_field(&frame[HEADER_BYTES..], b'C'), Some("23505"));
    assert_eq!(
        frame.len(),
        1 + u32::from_be_bytes([frame[1], frame[2], frame[3], frame[4]]) as usize
    );
    let mut cut = BytesMut::from(&b"E\0\0\0\x09SERR"[..]);
    forget_field(&mut cut, b'P');
    assert_eq!(&cut[..], b"E\0\0\0\x09SERR");
}
