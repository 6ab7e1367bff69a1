//! The hot path's lexer: cuts literals out of a statement, so that statements which differ only in
//! their literals share one plan.
//!
//! Tokens are those of Postgres's own scanner (`src/backend/parser/scan.l`) with
//! `standard_conforming_strings = on`. Only plain `'...'` strings and plain decimal numbers are
//! cut; all else is copied. Where servers of different versions could read a text differently,
//! it is not normalised.

use std::borrow::Cow;

/// A text with its literals cut out. Reused from statement to statement to keep its allocations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Normalised {
    /// The text with each literal replaced by `\x01` and a letter for its class.
    pub text: String,
    /// What was cut out, in order.
    pub literals: Vec<Literal>,
    /// How many statements that are not empty, counting each semicolon outside of parentheses as
    /// an end.
    pub statements: usize,
}

/// A literal in the original text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Literal {
    /// The byte offset of its first byte; for a string, of its quote.
    pub start: usize,
    /// The byte offset behind its last byte.
    pub end: usize,
    /// What it is.
    pub class: LiteralClass,
}

/// Literals of one class may replace each other without changing how a statement is parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LiteralClass {
    /// Decimal digits, a value that fits an int8.
    Integer,
    /// With a decimal point or an exponent.
    Number,
    /// `'...'`.
    String,
}

/// Operator characters in a row. The server's names have 63, but `-+-+1` is four operators, and
/// its scanner and ours look at all that follow for each.
const OPERATOR_BYTES_MAX: usize = 512;

/// Starts each marker. Texts that hold this byte themselves are not normalised.
const MARKER: u8 = 1;

impl LiteralClass {
    fn marker(self) -> &'static str {
        match self {
            LiteralClass::Integer => "\x01i",
            LiteralClass::Number => "\x01n",
            LiteralClass::String => "\x01s",
        }
    }
}

impl Literal {
    /// The literal as the client spelled it, quotes included.
    pub fn spelled(self, text: &str) -> &str {
        &text[self.start..self.end]
    }

    /// The literal's value as text: a string without its quotes, a number as spelled.
    pub fn unquoted(self, text: &str) -> Cow<'_, str> {
        let spelled = self.spelled(text);
        match self.class {
            LiteralClass::Integer | LiteralClass::Number => Cow::Borrowed(spelled),
            LiteralClass::String => {
                let inner = &spelled[1..spelled.len() - 1];
                if inner.contains('\'') {
                    Cow::Owned(inner.replace("''", "'"))
                } else {
                    Cow::Borrowed(inner)
                }
            }
        }
    }
}

/// Fills `into` from `text`. False when the text cannot be normalised (an unterminated quote or
/// comment, a form that servers of different versions read differently): plan it without the
/// cache; `into` then holds nothing of use.
pub fn normalise(text: &str, into: &mut Normalised) -> bool {
    into.text.clear();
    into.literals.clear();
    into.statements = 0;
    let bytes = text.as_bytes();
    if bytes.contains(&MARKER) {
        return false;
    }
    let (mut at, mut copied) = (0, 0);
    let mut depth = 0usize;
    let mut inside_statement = false;
    while at < bytes.len() {
        let Some(Lexeme { kind, end }) = lexeme(bytes, at) else {
            return false;
        };
        let class = match kind {
            Kind::Space => {
                at = end;
                continue;
            }
            Kind::Punctuation(b';') if depth == 0 => {
                into.statements += usize::from(inside_statement);
                inside_statement = false;
                at = end;
                continue;
            }
            Kind::Punctuation(b'(') => {
                depth += 1;
                None
            }
            Kind::Punctuation(b')') => {
                depth = depth.saturating_sub(1);
                None
            }
            Kind::String(Quoting::Plain) => Some(LiteralClass::String),
            Kind::Number(Digits::Integer) => Some(LiteralClass::Integer),
            Kind::Number(Digits::Decimal) => Some(LiteralClass::Number),
            // `UESCAPE '!'`, also of identifiers, would be cut; continued strings have a gap.
            Kind::String(Quoting::Unicode | Quoting::Continued) | Kind::UnicodeIdentifier => {
                return false;
            }
            Kind::Number(Digits::Junk) => return false,
            Kind::String(Quoting::Prefixed)
            | Kind::Number(Digits::Odd)
            | Kind::Word
            | Kind::QuotedIdentifier
            | Kind::Parameter
            | Kind::Operator
            | Kind::Punctuation(_) => None,
        };
        inside_statement = true;
        if let Some(class) = class {
            into.text.push_str(&text[copied..at]);
            into.text.push_str(class.marker());
            into.literals.push(Literal {
                start: at,
                end,
                class,
            });
            copied = end;
        }
        at = end;
    }
    into.text.push_str(&text[copied..]);
    into.statements += usize::from(inside_statement);
    true
}

/// A token of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// What it is.
    pub kind: TokenKind,
    /// The byte offset of its first byte.
    pub start: usize,
    /// The byte offset behind its last byte.
    pub end: usize,
    /// How many parentheses and brackets are open around it. An opening one and its closing one
    /// have the same depth: that of what stands around them.
    pub depth: usize,
}

/// What a [`Token`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// A key word or an identifier without quotes.
    Word,
    /// `"..."`, `U&"..."`.
    QuotedIdentifier,
    /// Any form of string with its prefix and, if continued on another line, all its parts.
    String,
    /// Any form of number, unsigned.
    Number,
    /// `$n`.
    Parameter,
    /// `,` `(` `)` `[` `]` `;` `.` `:`
    Punctuation(char),
    /// All other characters, `::`, `:=` and `..` among them.
    Operator,
}

/// All tokens of a text, without spaces and comments. Stops at a quote or comment without an end,
/// and at hundreds of operator characters in a row.
pub fn tokens(text: &str) -> Vec<Token> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::with_capacity(bytes.len() / 4);
    let (mut start, mut depth) = (0, 0usize);
    while start < bytes.len() {
        let Some(Lexeme { kind, end }) = lexeme(bytes, start) else {
            break;
        };
        let kind = match kind {
            Kind::Space => {
                start = end;
                continue;
            }
            Kind::Word => TokenKind::Word,
            Kind::QuotedIdentifier | Kind::UnicodeIdentifier => TokenKind::QuotedIdentifier,
            Kind::String(_) => TokenKind::String,
            Kind::Number(_) => TokenKind::Number,
            Kind::Parameter => TokenKind::Parameter,
            Kind::Punctuation(byte) => TokenKind::Punctuation(char::from(byte)),
            Kind::Operator => TokenKind::Operator,
        };
        if let TokenKind::Punctuation(')' | ']') = kind {
            depth = depth.saturating_sub(1);
        }
        tokens.push(Token {
            kind,
            start,
            end,
            depth,
        });
        if let TokenKind::Punctuation('(' | '[') = kind {
            depth += 1;
        }
        start = end;
    }
    tokens
}

/// A text for libpg_query: the same tokens at the same places, without what its scanner takes
/// quadratic time for. That goes back to behind each `/*` and reads the rest of it again, so inside
/// of comments that hold another one everything is a space. `None`: the text has an operator
/// that long.
pub(crate) fn without_traps(text: &str) -> Option<Cow<'_, str>> {
    let bytes = text.as_bytes();
    let mut changed: Option<Vec<u8>> = None;
    let trapped = longest_operator_run(bytes) > OPERATOR_BYTES_MAX
        || bytes.windows(2).any(|pair| pair == b"/*");
    let mut at = 0;
    while trapped && at < bytes.len() {
        let comment = bytes[at..].starts_with(b"/*");
        let end = match lexeme(bytes, at) {
            Some(Lexeme { end, .. }) => end,
            None if comment => bytes.len(),
            None if operator(bytes, at).is_none() && is_operator(bytes[at]) => return None,
            // A quote without an end: the grammar will say so.
            None => break,
        };
        let inside = at + 2..end.saturating_sub(2).max(at + 2);
        if comment && bytes[inside.clone()].windows(2).any(|pair| pair == b"/*") {
            let changed = changed.get_or_insert_with(|| bytes.to_vec());
            // One without an end stays one.
            let closed = end < bytes.len() || block_comment(bytes, at).is_some();
            let inside = if closed { inside } else { at + 2..end };
            changed[inside].fill(b' ');
        }
        at = end;
    }
    match changed {
        None => Some(Cow::Borrowed(text)),
        Some(changed) => String::from_utf8(changed).ok().map(Cow::Owned),
    }
}

fn is_operator(byte: u8) -> bool {
    matches!(
        STARTS[usize::from(byte)],
        Start::Operator | Start::Dash | Start::Slash
    )
}

fn longest_operator_run(bytes: &[u8]) -> usize {
    let (mut longest, mut run) = (0, 0);
    for byte in bytes {
        run = if is_operator(*byte) { run + 1 } else { 0 };
        longest = longest.max(run);
    }
    longest
}

struct Lexeme {
    kind: Kind,
    end: usize,
}

#[derive(Clone, Copy)]
enum Kind {
    /// White space or a comment.
    Space,
    Word,
    QuotedIdentifier,
    /// `U&"..."`
    UnicodeIdentifier,
    String(Quoting),
    Number(Digits),
    Parameter,
    Punctuation(u8),
    Operator,
}

#[derive(Clone, Copy)]
enum Quoting {
    /// `'...'`
    Plain,
    /// `E'...'`, `B'...'`, `X'...'`, `N'...'`, `$tag$...$tag$`
    Prefixed,
    /// `U&'...'`
    Unicode,
    /// Any of them, continued after a line break.
    Continued,
}

#[derive(Clone, Copy)]
enum Digits {
    Integer,
    Decimal,
    /// Hexadecimal, underscores, more than an int8 holds, letters behind.
    Odd,
    /// `1e'...'`, `0x"..."`, `1a$$...$$`: old servers take the letters for the start of another
    /// token.
    Junk,
}

/// What a token that starts with a byte can be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Start {
    Space,
    Word,
    Digit,
    Quote,
    DoubleQuote,
    Dollar,
    Dash,
    Slash,
    Dot,
    Colon,
    Punctuation,
    Operator,
    /// No token starts with it; the server will say so.
    Other,
}

const STARTS: [Start; 256] = starts();

const fn starts() -> [Start; 256] {
    let mut starts = [Start::Other; 256];
    let mut byte = 0;
    while byte < 256 {
        starts[byte] = match byte as u8 {
            b' ' | b'\t' | b'\n' | b'\r' | b'\x0b' | b'\x0c' => Start::Space,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80..=0xff => Start::Word,
            b'0'..=b'9' => Start::Digit,
            b'\'' => Start::Quote,
            b'"' => Start::DoubleQuote,
            b'$' => Start::Dollar,
            b'-' => Start::Dash,
            b'/' => Start::Slash,
            b'.' => Start::Dot,
            b':' => Start::Colon,
            b',' | b'(' | b')' | b'[' | b']' | b';' => Start::Punctuation,
            b'~' | b'!' | b'@' | b'#' | b'^' | b'&' | b'|' | b'`' | b'?' | b'+' | b'*' | b'%'
            | b'<' | b'>' | b'=' => Start::Operator,
            _ => Start::Other,
        };
        byte += 1;
    }
    starts
}

fn start_of(bytes: &[u8], at: usize) -> Option<Start> {
    bytes.get(at).map(|byte| STARTS[usize::from(*byte)])
}

/// May stand inside an identifier.
fn continues_word(byte: u8) -> bool {
    matches!(
        STARTS[usize::from(byte)],
        Start::Word | Start::Digit | Start::Dollar
    )
}

/// The token at `at`, which is inside `bytes`. `None` when it has no end, or none that we know.
#[inline]
fn lexeme(bytes: &[u8], at: usize) -> Option<Lexeme> {
    let byte = bytes[at];
    let next = bytes.get(at + 1).copied();
    let found = |kind, end| Some(Lexeme { kind, end });
    match STARTS[usize::from(byte)] {
        Start::Space => found(
            Kind::Space,
            run(bytes, at + 1, |b| STARTS[b as usize] == Start::Space),
        ),
        Start::Word => word(bytes, at),
        Start::Digit => Some(number(bytes, at)),
        Start::Quote => string(bytes, at, Escapes::Doubled, Quoting::Plain),
        Start::DoubleQuote => found(Kind::QuotedIdentifier, quoted(bytes, at, Escapes::Doubled)?),
        Start::Dollar => dollar(bytes, at),
        Start::Dash if next == Some(b'-') => found(Kind::Space, line_comment(bytes, at)),
        Start::Slash if next == Some(b'*') => found(Kind::Space, block_comment(bytes, at)?),
        Start::Dash | Start::Slash | Start::Operator => found(Kind::Operator, operator(bytes, at)?),
        Start::Dot if next.is_some_and(|byte| byte.is_ascii_digit()) => Some(number(bytes, at)),
        Start::Dot if next == Some(b'.') => found(Kind::Operator, at + 2),
        Start::Colon if matches!(next, Some(b':' | b'=')) => found(Kind::Operator, at + 2),
        Start::Dot | Start::Colon | Start::Punctuation => found(Kind::Punctuation(byte), at + 1),
        Start::Other => found(Kind::Operator, at + 1),
    }
}

#[inline]
fn run(bytes: &[u8], from: usize, belongs: impl Fn(u8) -> bool) -> usize {
    bytes[from..]
        .iter()
        .position(|byte| !belongs(*byte))
        .map_or(bytes.len(), |at| from + at)
}

/// An identifier, or a string or identifier that starts with a letter.
#[inline]
fn word(bytes: &[u8], at: usize) -> Option<Lexeme> {
    let end = run(bytes, at + 1, continues_word);
    if end == at + 1 {
        match (bytes[at], bytes.get(end), bytes.get(end + 1)) {
            (b'e' | b'E', Some(b'\''), _) => {
                return string(bytes, end, Escapes::Backslash, Quoting::Prefixed);
            }
            (b'b' | b'B' | b'x' | b'X', Some(b'\''), _) => {
                return string(bytes, end, Escapes::None, Quoting::Prefixed);
            }
            (b'n' | b'N', Some(b'\''), _) => {
                return string(bytes, end, Escapes::Doubled, Quoting::Prefixed);
            }
            (b'u' | b'U', Some(b'&'), Some(b'\'')) => {
                return string(bytes, end + 1, Escapes::Doubled, Quoting::Unicode);
            }
            (b'u' | b'U', Some(b'&'), Some(b'"')) => {
                let end = quoted(bytes, end + 1, Escapes::Doubled)?;
                return Some(Lexeme {
                    kind: Kind::UnicodeIdentifier,
                    end,
                });
            }
            _ => {}
        }
    }
    Some(Lexeme {
        kind: Kind::Word,
        end,
    })
}

/// How a closing quote is told from one that belongs to the text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Escapes {
    /// The first quote closes.
    None,
    /// Two quotes stand for one.
    Doubled,
    /// The same, and a backslash takes away the next byte's meaning.
    Backslash,
}

/// The end of what is quoted by the byte at `at`.
fn quoted(bytes: &[u8], at: usize, escapes: Escapes) -> Option<usize> {
    let quote = bytes[at];
    let mut at = at + 1;
    loop {
        let byte = *bytes.get(at)?;
        if byte == quote {
            if bytes.get(at + 1) != Some(&quote) || escapes == Escapes::None {
                return Some(at + 1);
            }
            at += 1;
        } else if byte == b'\\' && escapes == Escapes::Backslash {
            at += 1;
        }
        at += 1;
    }
}

/// A string whose opening quote is at `at`, with all its continuations: a string goes on where,
/// after white space with at least one line break, another quote follows.
fn string(bytes: &[u8], at: usize, escapes: Escapes, quoting: Quoting) -> Option<Lexeme> {
    let mut end = quoted(bytes, at, escapes)?;
    let mut quoting = quoting;
    while let Some(next) = continuation(bytes, end) {
        end = quoted(bytes, next, escapes)?;
        quoting = Quoting::Continued;
    }
    Some(Lexeme {
        kind: Kind::String(quoting),
        end,
    })
}

/// The quote that continues the string that ends at `at`.
fn continuation(bytes: &[u8], mut at: usize) -> Option<usize> {
    let mut line_break = false;
    loop {
        match bytes.get(at)? {
            b'\n' | b'\r' => {
                line_break = true;
                at += 1;
            }
            b'\'' if line_break => return Some(at),
            b'-' if bytes.get(at + 1) == Some(&b'-') => at = line_comment(bytes, at),
            byte if STARTS[usize::from(*byte)] == Start::Space => at += 1,
            _ => return None,
        }
    }
}

/// A number, with letters that stick to it.
#[inline]
fn number(bytes: &[u8], at: usize) -> Lexeme {
    let mut end = digits(bytes, at);
    let mut kind = Digits::Integer;
    // `1..2` is two integers.
    if bytes.get(end) == Some(&b'.') && bytes.get(end + 1) != Some(&b'.') {
        kind = Digits::Decimal;
        end = digits(bytes, end + 1);
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        let exponent = end + 1 + sign;
        if bytes.get(exponent).is_some_and(u8::is_ascii_digit) {
            kind = Digits::Decimal;
            end = digits(bytes, exponent);
        }
    }
    if start_of(bytes, end) == Some(Start::Word) {
        end = run(bytes, end, continues_word);
        let touches_quote = matches!(bytes.get(end), Some(b'\'' | b'"' | b'&'));
        let junk = touches_quote || bytes[at..end].contains(&b'$');
        kind = if junk { Digits::Junk } else { Digits::Odd };
    } else if bytes[at..end].contains(&b'_') {
        kind = Digits::Odd;
    } else if let Digits::Integer = kind
        && end - at > 18
        && !fits_int8(&bytes[at..end])
    {
        kind = Digits::Odd;
    }
    Lexeme {
        kind: Kind::Number(kind),
        end,
    }
}

/// The end of digits, which single underscores may separate.
#[inline]
fn digits(bytes: &[u8], at: usize) -> usize {
    let mut end = run(bytes, at, |byte| byte.is_ascii_digit());
    while end > at
        && bytes.get(end) == Some(&b'_')
        && bytes.get(end + 1).is_some_and(u8::is_ascii_digit)
    {
        end = run(bytes, end + 1, |byte| byte.is_ascii_digit());
    }
    end
}

fn fits_int8(digits: &[u8]) -> bool {
    digits.len() == 19 && digits <= b"9223372036854775807".as_slice()
}

/// `$1`, `$tag$...$tag$`, or a stray dollar sign.
fn dollar(bytes: &[u8], at: usize) -> Option<Lexeme> {
    let lexeme = |kind, end| Some(Lexeme { kind, end });
    match start_of(bytes, at + 1) {
        Some(Start::Digit) => {
            let end = run(bytes, at + 1, |byte| byte.is_ascii_digit());
            lexeme(Kind::Parameter, end)
        }
        Some(Start::Word | Start::Dollar) => {
            let tag = |byte| continues_word(byte) && byte != b'$';
            let open = run(bytes, at + 1, tag);
            if bytes.get(open) != Some(&b'$') {
                return lexeme(Kind::Operator, at + 1);
            }
            let end = dollar_close(bytes, open + 1, &bytes[at..=open])?;
            lexeme(Kind::String(Quoting::Prefixed), end)
        }
        _ => lexeme(Kind::Operator, at + 1),
    }
}

/// The end of a dollar-quoted string: behind the first `delimiter` at or after `from`.
fn dollar_close(bytes: &[u8], mut from: usize, delimiter: &[u8]) -> Option<usize> {
    loop {
        from += bytes.get(from..)?.iter().position(|byte| *byte == b'$')?;
        if bytes[from..].starts_with(delimiter) {
            return Some(from + delimiter.len());
        }
        from += 1;
    }
}

fn line_comment(bytes: &[u8], at: usize) -> usize {
    run(bytes, at, |byte| !matches!(byte, b'\n' | b'\r'))
}

/// The end of a block comment; they nest.
fn block_comment(bytes: &[u8], at: usize) -> Option<usize> {
    let (mut at, mut depth) = (at + 2, 1);
    while depth > 0 {
        match (bytes.get(at)?, bytes.get(at + 1)?) {
            (b'*', b'/') => (at, depth) = (at + 2, depth - 1),
            (b'/', b'*') => (at, depth) = (at + 2, depth + 1),
            _ => at += 1,
        }
    }
    Some(at)
}

/// An operator ends where a comment starts, and one of several characters does not end in `+` or
/// `-` unless it holds one of `~ ! @ # % ^ & | ?` or a backquote. `None` when there is no telling
/// how many operators so many characters are.
#[inline]
fn operator(bytes: &[u8], at: usize) -> Option<usize> {
    let mut end = at + 1;
    while let Some(Start::Operator | Start::Dash | Start::Slash) = start_of(bytes, end) {
        if end - at >= OPERATOR_BYTES_MAX {
            return None;
        }
        if matches!(&bytes[end..], [b'-', b'-', ..] | [b'/', b'*', ..]) {
            break;
        }
        end += 1;
    }
    let special = |byte: &u8| b"~!@#%^&|`?".contains(byte);
    while end > at + 1
        && matches!(bytes[end - 1], b'+' | b'-')
        && !bytes[at..end].iter().any(special)
    {
        end -= 1;
    }
    Some(end)
}

#[cfg(test)]
mod tests;
