//! Decoders of messages. What decodes is encoded again, by the encoders that write to shards, and
//! must come out as it was.

use automator67_proxy::{
    frame::{self, FRAME_BYTES_MAX},
    fuzzing::message::{self, Bind, Named},
};
use bytes::BytesMut;

/// Every decoder, whatever the body was meant to be.
pub fn check(body: &[u8]) {
    for tag in *b"QPBDCE" {
        check_canonical(tag, body);
    }
    check_reader(body);
    check_from_shard(body);
}

/// Decodes and encodes a message of this type.
pub fn check_canonical(tag: u8, body: &[u8]) {
    let mut output = BytesMut::new();
    match tag {
        b'Q' => {
            let Ok(text) = message::query(body) else {
                return;
            };
            message::put_query(&mut output, text);
        }
        b'P' => {
            let Ok(parse) = message::parse(body) else {
                return;
            };
            message::put_parse(
                &mut output,
                &parse.name,
                &parse.text,
                &parse.parameter_types,
            );
        }
        b'B' => {
            let Ok(bind) = message::bind(body) else {
                return;
            };
            message::put_bind(&mut output, &bind.portal, &bind.statement, &bind.rest);
            check_bind(&bind);
        }
        b'D' => match message::named(body, "DESCRIBE") {
            Err(_) => return,
            Ok(Named::Statement(name)) => message::put_describe(&mut output, b'S', &name),
            Ok(Named::Portal(name)) => message::put_describe(&mut output, b'P', &name),
        },
        b'C' => match message::named(body, "CLOSE") {
            Err(_) => return,
            Ok(Named::Statement(name)) => message::put_close(&mut output, b'S', &name),
            Ok(Named::Portal(name)) => message::put_close(&mut output, b'P', &name),
        },
        b'E' => {
            let Ok((portal, limit)) = message::execute(body) else {
                return;
            };
            message::put_execute(&mut output, &portal, limit);
        }
        _ => return,
    }
    assert_eq!(taken(output, tag), body, "encoding changed the message");
}

/// The body of the only frame in `output`.
fn taken(mut output: BytesMut, tag: u8) -> BytesMut {
    let mut frame = frame::take(&mut output, FRAME_BYTES_MAX)
        .expect("a frame of ours is valid")
        .expect("a frame of ours is whole");
    assert_eq!(frame.tag, tag);
    assert!(output.is_empty(), "a frame of ours has something behind it");
    frame.bytes.split_off(frame::HEADER_BYTES)
}

/// With another result format the parameters stay what they are.
fn check_bind(bind: &Bind) {
    for format in [0, 1] {
        let mut output = BytesMut::new();
        message::put_bind_with_format(
            &mut output,
            &bind.portal,
            &bind.statement,
            bind.parameters(),
            format,
        );
        let Ok(again) = message::bind(&taken(output, b'B')) else {
            panic!("a Bind of ours does not decode");
        };
        assert_eq!(again.portal, bind.portal);
        assert_eq!(again.statement, bind.statement);
        assert_eq!(again.wants_binary(), format == 1);
        assert_eq!(again.parameters(), bind.parameters());
        assert_eq!(again.parameter_count(), bind.parameter_count());
        // One more than there are: it is simply not there.
        for index in 0..=bind.parameter_count() {
            assert_eq!(again.value(index), bind.value(index));
            assert_eq!(again.is_binary(index), bind.is_binary(index));
        }
    }
}

/// Strings read off the front are the bytes they came from.
fn check_reader(body: &[u8]) {
    let mut reader = message::Reader::new(body);
    let mut at = 0;
    while let Ok(text) = reader.string() {
        assert_eq!(body.get(at..at + text.len()), Some(text.as_bytes()));
        assert_eq!(body.get(at + text.len()), Some(&0));
        at += text.len() + 1;
    }
    let mut reader = message::Reader::new(body);
    if let Ok(length) = reader.int32()
        && let Ok(length) = usize::try_from(length)
        && let Ok(bytes) = reader.bytes(length)
    {
        assert_eq!(bytes, &body[4..4 + length]);
        assert_eq!(reader.end().is_ok(), body.len() == 4 + length);
    }
}

/// A shard is trusted more than a client, and still not with our memory.
fn check_from_shard(body: &[u8]) {
    for field in *b"SCMDH" {
        message::error_field(body, field);
    }
    message::shape(body);
    message::tag_rows(message::command_tag(body));
    if let Some(types) = message::parameter_types(body) {
        assert_eq!(2 + 4 * types.len(), body.len(), "read to its end");
    }
    if let Some(values) = message::data_row(body) {
        let size: usize = values.iter().map(|v| 4 + v.map_or(0, <[u8]>::len)).sum();
        assert!(2 + size <= body.len(), "a row has more than its frame");
    }
    for hidden in 0..3 {
        let mut output = BytesMut::new();
        message::put_copy_in_response(&mut output, body, hidden);
        taken(output, b'G');
    }
    let mut frame = BytesMut::new();
    message::framed(&mut frame, b'T', |output| output.extend_from_slice(body));
    let shape = message::shape(body);
    message::forget_tables(&mut frame);
    assert_eq!(frame.len(), body.len() + frame::HEADER_BYTES);
    assert_eq!(message::shape(&frame[frame::HEADER_BYTES..]), shape);
}
