#!/usr/bin/env bash
# The Rust crate pg_query 18.1.0 (the server's own grammar, libpg_query, with its tree over protobuf).
# Guess: what Postgres parses, it parses. Seen: a sum of 48 terms, or 24 strings put together by ||, is
# refused with "failed to decode message: ... recursion limit reached": the crate that decodes protobuf
# stops at 100 messages inside each other, and each operator is two. PostgreSQL takes some 4,000. It
# goes away where prost's feature `no-recursion-limit` is on, which a program can turn on for all its
# crates; then the depth of the stack is the limit. Needs cargo, a C compiler and libclang.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/src"
cat >"$folder/src/main.rs" <<'RUST'
fn main() {
    for terms in [47, 48, 1000] {
        let sql = format!("SELECT {}", vec!["1"; terms].join(" + "));
        match pg_query::parse(&sql, pg_query::ParserOptions::default()) {
            Ok(_) => println!("{terms}: parsed"),
            Err(error) => {
                let text = error.to_string();
                let limit = text.contains("recursion limit reached");
                println!("{terms}: {}", if limit { "recursion limit reached" } else { &text });
            }
        }
    }
}
RUST
run() {
    printf '[package]\nname = "nesting"\nversion = "0.0.0"\nedition = "2021"\n[dependencies]\npg_query = "=18.1.0"\n%s\n' \
        "$1" >"$folder/Cargo.toml"
    (cd "$folder" && cargo run --quiet)
}
seen=$(run ''; echo 'with no-recursion-limit'; run 'prost = { version = "0.13", features = ["no-recursion-limit"] }')
expected='47: parsed
48: recursion limit reached
1000: recursion limit reached
with no-recursion-limit
47: parsed
48: parsed
1000: parsed'
printf '%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'CHANGED, expected:\n%s\n' "$expected" >&2; exit 1; }
