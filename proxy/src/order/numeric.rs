//! `numeric`: digits in base 10,000 with a weight, as `numeric_send` of the server's source
//! writes them.
//!
//! Header: number of digits, weight of the first digit, sign, number of decimals to show; two
//! bytes each. The decimals to show are no part of the order.

use std::cmp::Ordering;

const BASE: u16 = 10_000;
const HEADER_BYTES: usize = 8;

const POSITIVE: u16 = 0x0000;
const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xC000;
const INFINITY: u16 = 0xD000;
const MINUS_INFINITY: u16 = 0xF000;

/// A decoded value. The variants stand in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Numeric<'a> {
    MinusInfinity,
    Finite(Finite<'a>),
    Infinity,
    NaN,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finite<'a> {
    Negative(Magnitude<'a>),
    Zero,
    Positive(Magnitude<'a>),
}

impl Ord for Finite<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Finite::Negative(left), Finite::Negative(right)) => right.cmp(left),
            (Finite::Positive(left), Finite::Positive(right)) => left.cmp(right),
            _ => self.sign().cmp(&other.sign()),
        }
    }
}

impl PartialOrd for Finite<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Finite<'_> {
    fn sign(&self) -> i8 {
        match self {
            Finite::Negative(_) => -1,
            Finite::Zero => 0,
            Finite::Positive(_) => 1,
        }
    }
}

/// Neither the first nor the last digit is zero, so that the fields' order is the order of the
/// numbers: by weight, then digit by digit, where the shorter of two that begin alike is smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Magnitude<'a> {
    weight: i64,
    /// Big-endian, so the bytes are ordered as the digits are.
    digits: &'a [[u8; 2]],
}

/// None if the bytes are no numeric.
pub(super) fn decode(bytes: &[u8]) -> Option<Numeric<'_>> {
    let (header, digits) = bytes.split_first_chunk::<HEADER_BYTES>()?;
    let [n0, n1, w0, w1, s0, s1, _, _] = *header;
    let (digits, rest) = digits.as_chunks::<2>();
    let count = usize::from(u16::from_be_bytes([n0, n1]));
    if digits.len() != count || !rest.is_empty() {
        return None;
    }
    if digits
        .iter()
        .any(|&digit| u16::from_be_bytes(digit) >= BASE)
    {
        return None;
    }
    let magnitude = magnitude(i16::from_be_bytes([w0, w1]), digits);
    match u16::from_be_bytes([s0, s1]) {
        POSITIVE => Some(Numeric::Finite(
            magnitude.map_or(Finite::Zero, Finite::Positive),
        )),
        NEGATIVE => Some(Numeric::Finite(
            magnitude.map_or(Finite::Zero, Finite::Negative),
        )),
        NAN => Some(Numeric::NaN),
        INFINITY => Some(Numeric::Infinity),
        MINUS_INFINITY => Some(Numeric::MinusInfinity),
        _ => None,
    }
}

/// None is zero. Servers send no zeros at either end, but do accept them.
fn magnitude(weight: i16, mut digits: &[[u8; 2]]) -> Option<Magnitude<'_>> {
    let mut weight = i64::from(weight);
    while let [[0, 0], rest @ ..] = digits {
        digits = rest;
        weight -= 1;
    }
    while let [rest @ .., [0, 0]] = digits {
        digits = rest;
    }
    (!digits.is_empty()).then_some(Magnitude { weight, digits })
}
