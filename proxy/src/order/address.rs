//! `inet` and `cidr`, as `network_send` of the server's source writes them: family, bits of the
//! mask, whether it is a cidr, size of the address, address.

/// The families' numbers on the wire, in their order.
const IPV4: u8 = 2;
const IPV6: u8 = 3;
const ADDRESS_BITS_MAX: u32 = 128;

/// The order of one family (`network_cmp_internal` of the server's source): the networks as far as
/// both masks reach, then the masks, then the whole addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address {
    /// At the upper end of the number, whatever the family.
    bits: u128,
    mask: u32,
}

impl Ord for Address {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let common = self.mask.min(other.mask);
        prefix(self.bits, common)
            .cmp(&prefix(other.bits, common))
            .then(self.mask.cmp(&other.mask))
            .then(self.bits.cmp(&other.bits))
    }
}

impl PartialOrd for Address {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

fn prefix(bits: u128, count: u32) -> u128 {
    bits.checked_shr(ADDRESS_BITS_MAX - count).unwrap_or(0)
}

/// Family and address; none if the bytes are neither.
pub(super) fn decode(bytes: &[u8]) -> Option<(u8, Address)> {
    let ([family, mask, _is_cidr, size], address) = bytes.split_first_chunk::<4>()?;
    if address.len() != usize::from(*size) {
        return None;
    }
    let (bits, mask_max) = match *family {
        IPV4 => {
            let bits = u32::from_be_bytes(super::exact(address)?);
            (u128::from(bits) << (ADDRESS_BITS_MAX - u32::BITS), 32)
        }
        IPV6 => (u128::from_be_bytes(super::exact(address)?), 128),
        _ => return None,
    };
    let mask = u32::from(*mask);
    (mask <= mask_max).then_some((*family, Address { bits, mask }))
}
