//! Edits of a text at the places its tree points to: everything else stays the client's own bytes.

use std::{cmp::Reverse, collections::BTreeMap};

use crate::normalise::{Token, TokenKind, tokens};

/// A text with its tokens.
#[derive(Debug)]
pub(crate) struct Source<'t> {
    pub(crate) text: &'t str,
    pub(crate) tokens: Vec<Token>,
}

impl<'t> Source<'t> {
    pub(crate) fn new(text: &'t str) -> Self {
        Source {
            text,
            tokens: tokens(text),
        }
    }

    /// A text with the tokens of a part of it, which starts and ends where tokens do: places count
    /// from the text's start.
    pub(crate) fn within(text: &'t str, (from, to): (usize, usize)) -> Self {
        let mut tokens = tokens(text.get(from..to).unwrap_or(""));
        for token in &mut tokens {
            token.start += from;
            token.end += from;
        }
        Source { text, tokens }
    }

    /// The index of the token that starts at a byte offset.
    pub(crate) fn token_at(&self, location: usize) -> Option<usize> {
        self.tokens
            .binary_search_by_key(&location, |token| token.start)
            .ok()
    }

    /// The index of the first token at or behind a byte offset.
    pub(crate) fn token_from(&self, location: usize) -> usize {
        self.tokens.partition_point(|token| token.start < location)
    }

    /// The token's text.
    pub(crate) fn spelled(&self, index: usize) -> &'t str {
        self.tokens
            .get(index)
            .map_or("", |token| &self.text[token.start..token.end])
    }

    /// True when the token is this key word.
    pub(crate) fn is_word(&self, index: usize, word: &str) -> bool {
        self.tokens
            .get(index)
            .is_some_and(|token| token.kind == TokenKind::Word)
            && self.spelled(index).eq_ignore_ascii_case(word)
    }

    /// True when the token is this character.
    pub(crate) fn is_mark(&self, index: usize, mark: char) -> bool {
        self.tokens
            .get(index)
            .is_some_and(|token| token.kind == TokenKind::Punctuation(mark))
    }

    /// The bytes of a name of one or more parts that starts at a byte offset.
    pub(crate) fn name(&self, location: usize) -> Option<(usize, usize)> {
        let first = self.token_at(location)?;
        let last = self.name_end(first)?;
        Some((location, self.tokens[last].end))
    }

    /// Where the word begins that stands before the token at a byte offset.
    pub(crate) fn word_before(&self, location: usize, word: &str) -> Option<usize> {
        let before = self.token_at(location)?.checked_sub(1)?;
        self.is_word(before, word)
            .then(|| self.tokens[before].start)
    }

    /// The index of a name's last token.
    fn name_end(&self, first: usize) -> Option<usize> {
        let is_part = |index: usize| {
            let kind = self.tokens.get(index).map(|token| token.kind);
            matches!(kind, Some(TokenKind::Word | TokenKind::QuotedIdentifier))
        };
        if !is_part(first) || self.is_word(first + 1, "uescape") {
            return None;
        }
        let mut last = first;
        while self.is_mark(last + 1, '.') && is_part(last + 2) {
            last += 2;
        }
        Some(last)
    }

    /// The bytes of the first `count` parts of a name, with the dots behind them.
    pub(crate) fn qualifiers(&self, location: usize, count: usize) -> Option<(usize, usize)> {
        let first = self.token_at(location)?;
        for part in 0..count {
            if !self.is_mark(first + 2 * part + 1, '.') {
                return None;
            }
        }
        Some((location, self.tokens.get(first + 2 * count)?.start))
    }

    /// The index of the bracket that closes the one at `open`.
    pub(crate) fn closing(&self, open: usize) -> Option<usize> {
        let depth = self.tokens.get(open)?.depth;
        let behind = self.tokens.iter().enumerate().skip(open + 1);
        behind
            .filter(|(_, token)| matches!(token.kind, TokenKind::Punctuation(')' | ']')))
            .find(|(_, token)| token.depth == depth)
            .map(|(index, _)| index)
    }

    /// The bytes of a call without arguments, or of a key word that is called without brackets
    /// or with a precision.
    pub(crate) fn call(&self, location: usize) -> Option<(usize, usize)> {
        let first = self.token_at(location)?;
        let last = self.name_end(first)?;
        if self.is_mark(last + 1, '(') {
            let close = self.closing(last + 1)?;
            return Some((location, self.tokens[close].end));
        }
        Some((location, self.tokens[last].end))
    }
}

/// Replacements of parts of a text.
#[derive(Debug, Default)]
pub(crate) struct Edits {
    list: BTreeMap<(usize, usize), Vec<String>>,
}

impl Edits {
    /// Puts `replacement` where bytes `from..to` are.
    pub(crate) fn replace(&mut self, span: (usize, usize), replacement: impl Into<String>) {
        let replacement = replacement.into();
        let known = self.list.entry(span).or_default();
        if !known.contains(&replacement) {
            known.push(replacement);
        }
    }

    /// Puts a replacement for each of some parts, and leaves everything inside of them as it is. Of
    /// a part inside another one there is nothing left.
    pub(crate) fn replace_whole(&mut self, parts: &[((usize, usize), String)]) {
        let mut sorted: Vec<&((usize, usize), String)> = parts.iter().collect();
        sorted.sort_by_key(|((from, to), _)| (*from, Reverse(*to)));
        let mut outermost: Vec<&((usize, usize), String)> = Vec::with_capacity(sorted.len());
        for part in sorted {
            if outermost.last().is_none_or(|last| part.0.1 > last.0.1) {
                outermost.push(part);
            }
        }
        // Of the parts that start at or before an edit, the last ends latest.
        self.list.retain(|(from, to), _| {
            let behind = outermost.partition_point(|part| part.0.0 <= *from);
            let last = behind.checked_sub(1).and_then(|at| outermost.get(at));
            last.is_none_or(|part| *to > part.0.1)
        });
        for (span, replacement) in outermost {
            self.replace(*span, replacement.clone());
        }
    }

    /// The part `span` of a text with all edits in it made. `None` when two of them overlap.
    pub(crate) fn apply(self, text: &str, span: (usize, usize)) -> Option<String> {
        let mut result = String::with_capacity(span.1 - span.0 + 64 * self.list.len());
        let mut at = span.0;
        for ((from, to), replacements) in &self.list {
            if *from < span.0 || *to > span.1 {
                continue;
            }
            for replacement in replacements {
                result.push_str(text.get(at..*from)?);
                result.push_str(replacement);
                at = *to;
            }
        }
        result.push_str(text.get(at..span.1)?);
        Some(result)
    }
}
