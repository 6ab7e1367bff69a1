use super::*;

fn root(byte: u8) -> RootKey {
    RootKey(Zeroizing::new([byte; KEY_BYTES]))
}

#[test]
fn keys_come_back_only_under_their_own() {
    let (bucket, chunk) = (BucketKey::generate(), ChunkKey::generate());
    let wrapped = root(1).wrap(&bucket);
    assert_eq!(root(1).unwrap(&wrapped).unwrap().0, bucket.0);
    assert!(root(2).unwrap(&wrapped).is_err());
    assert!(root(1).unwrap(&wrapped[1..]).is_err());
    let inner = bucket.wrap(&chunk);
    assert_eq!(bucket.unwrap(&inner).unwrap().0, chunk.0);
    assert!(BucketKey::generate().unwrap(&inner).is_err());
    for at in 0..WRAPPED_BYTES {
        let mut changed = inner;
        changed[at] ^= 1;
        assert!(bucket.unwrap(&changed).is_err(), "byte {at}");
    }
}

#[test]
fn secrets_come_back_only_as_what_they_are() {
    let sealed = root(1).seal("key AK1", b"secret");
    assert_ne!(sealed, root(1).seal("key AK1", b"secret"));
    assert_eq!(**root(1).open("key AK1", &sealed).unwrap(), *b"secret");
    assert!(root(1).open("key AK2", &sealed).is_err());
    assert!(root(2).open("key AK1", &sealed).is_err());
    assert!(root(1).open("key AK1", &sealed[..11]).is_err());
}

#[test]
fn a_root_key_is_64_digits() {
    let key = RootKey::generate();
    let again = RootKey::parse(&format!(" {}\n", *key.digits()), "here").unwrap();
    assert_eq!(again.fingerprint(), key.fingerprint());
    for wrong in ["", "ab", &"g".repeat(64), &"a".repeat(63), &"é".repeat(32)] {
        let told = RootKey::parse(wrong, "the file").unwrap_err().to_string();
        assert!(told.contains("the file"), "{told}");
        assert!(wrong.is_empty() || !told.contains(wrong), "{told}");
    }
}

#[test]
fn a_passphrase_gives_the_same_key_with_the_same_salt() {
    let of = |phrase: &str, salt| RootKey::of_passphrase(phrase, &[salt; 16]);
    let fingerprint = |phrase: &str, salt| of(phrase, salt).unwrap().fingerprint();
    let phrase = "a horse that nobody staples";
    assert_eq!(fingerprint(phrase, 1), fingerprint(phrase, 1));
    assert_ne!(fingerprint(phrase, 1), fingerprint(phrase, 2));
    assert!(matches!(of("short", 1), Err(KeyError::Passphrase)));
}
