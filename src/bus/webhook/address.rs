//! Which addresses a webhook may be sent to.
//!
//! Whoever names a webhook's URL, or the name server behind it, must not be able to have the server speak with
//! what only the server can reach. So every address is looked at in the form in which packets would leave:
//! IPv6 forms that carry an IPv4 address (mapped, compatible, NAT64, 6to4) are taken for that address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A network: an address and how many of its first bits count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// An address in it.
    pub address: IpAddr,
    /// How many bits, 32 or 128 at most.
    pub bits: u8,
}

/// What may be reached besides public addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach {
    /// Private networks (RFC 1918, RFC 6598, RFC 4193) and this machine. Never link-local addresses, behind which
    /// clouds keep their machines' credentials.
    pub private: bool,
    /// These networks, whatever they are.
    pub networks: Vec<Network>,
}

/// What an address is, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Public,
    Loopback,
    Private,
    LinkLocal,
    Reserved,
}

impl Sort {
    const fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Loopback => "loopback",
            Self::Private => "private",
            Self::LinkLocal => "link-local",
            Self::Reserved => "reserved",
        }
    }
}

impl Network {
    /// Whether this address is in it.
    #[must_use]
    pub fn has(&self, address: IpAddr) -> bool {
        let same = |a: u128, b: u128, width: u32| {
            let kept = u32::from(self.bits).min(width);
            let drop = width.saturating_sub(kept);
            a.checked_shr(drop).unwrap_or(0) == b.checked_shr(drop).unwrap_or(0)
        };
        match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => same(a.to_bits().into(), b.to_bits().into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => same(a.to_bits(), b.to_bits(), 128),
            _ => false,
        }
    }
}

impl Reach {
    /// Why this address may not be reached; `None` if it may.
    #[must_use]
    pub fn refusal(&self, address: IpAddr) -> Option<String> {
        let really = carried(address);
        if self.networks.iter().any(|network| network.has(really)) {
            return None;
        }
        let sort = sort(really);
        let may = match sort {
            Sort::Public => true,
            Sort::Loopback | Sort::Private => self.private,
            Sort::LinkLocal | Sort::Reserved => false,
        };
        (!may).then(|| format!("{address} is a {} address", sort.name()))
    }
}

/// Whether this is this machine.
#[must_use]
pub fn is_loopback(address: IpAddr) -> bool {
    sort(carried(address)) == Sort::Loopback
}

/// The IPv4 address that an IPv6 one carries, or itself.
fn carried(address: IpAddr) -> IpAddr {
    let IpAddr::V6(six) = address else { return address };
    let low = |bits: u128| u32::try_from(bits & u128::from(u32::MAX)).unwrap_or(0);
    let bits = six.to_bits();
    let four = |bits: u32| IpAddr::V4(Ipv4Addr::from_bits(bits));
    let below = |first: Ipv6Addr, kept: u8| {
        Network { address: first.into(), bits: kept }.has(IpAddr::V6(six))
    };
    // ::ffff:a.b.c.d, and the deprecated ::a.b.c.d, of which ::1 and :: are their own.
    if below(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96) || (bits > 1 && bits >> 32 == 0) {
        return four(low(bits));
    }
    // RFC 6052: 64:ff9b::a.b.c.d. RFC 3056: 2002:aabb:ccdd::.
    if below(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96) {
        return four(low(bits));
    }
    if below(Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16) {
        return four(low(bits >> 80));
    }
    address
}

fn sort(address: IpAddr) -> Sort {
    match address {
        IpAddr::V4(four) => sort_v4(four),
        IpAddr::V6(six) => sort_v6(six),
    }
}

/// The registry of special-purpose IPv4 addresses (RFC 6890).
fn sort_v4(address: Ipv4Addr) -> Sort {
    let within = |a: u8, b: u8, c: u8, bits: u8| {
        Network { address: Ipv4Addr::new(a, b, c, 0).into(), bits }.has(address.into())
    };
    if within(127, 0, 0, 8) {
        return Sort::Loopback;
    }
    if within(169, 254, 0, 16) {
        return Sort::LinkLocal;
    }
    if within(10, 0, 0, 8)
        || within(172, 16, 0, 12)
        || within(192, 168, 0, 16)
        || within(100, 64, 0, 10)
    {
        return Sort::Private;
    }
    let reserved = within(0, 0, 0, 8)
        || within(192, 0, 0, 24)
        || within(192, 0, 2, 24)
        || within(192, 88, 99, 24)
        || within(198, 18, 0, 15)
        || within(198, 51, 100, 24)
        || within(203, 0, 113, 24)
        || within(224, 0, 0, 3);
    if reserved { Sort::Reserved } else { Sort::Public }
}

/// What is not global unicast is refused, and what of it carries others' addresses.
fn sort_v6(address: Ipv6Addr) -> Sort {
    let within = |a: u16, b: u16, bits: u8| {
        let first = Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0);
        Network { address: first.into(), bits }.has(address.into())
    };
    if address.is_loopback() {
        return Sort::Loopback;
    }
    if within(0xfe80, 0, 10) {
        return Sort::LinkLocal;
    }
    if within(0xfc00, 0, 7) {
        return Sort::Private;
    }
    // 2001::/23 has Teredo and its like, 2001:db8::/32 and 3fff::/20 are for documentation.
    let special = within(0x2001, 0, 23) || within(0x2001, 0xdb8, 32) || within(0x3fff, 0, 20);
    if within(0x2000, 0, 3) && !special { Sort::Public } else { Sort::Reserved }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(reach: &Reach, address: &str) -> bool {
        reach.refusal(address.parse().unwrap()).is_some()
    }

    const PUBLIC: [&str; 6] = [
        "1.1.1.1",
        "172.32.0.1",
        "100.128.0.1",
        "2606:4700:4700::1111",
        "64:ff9b::1.1.1.1",
        "::ffff:8.8.8.8",
    ];
    const PRIVATE: [&str; 12] = [
        "10.0.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "100.64.0.1",
        "127.0.0.1",
        "127.8.9.1",
        "::1",
        "fd00::1",
        "::ffff:10.0.0.1",
        "::10.0.0.1",
        "64:ff9b::7f00:1",
        "2002:a00:1::",
    ];
    const NEVER: [&str; 18] = [
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "fe80::1",
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "ff02::1",
        "255.255.255.255",
        "240.0.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "64:ff9b:1::1",
        "2001:db8::1",
        "2001::1",
        "fec0::1",
        "100::1",
        "0.1.2.3",
    ];

    #[test]
    fn only_public_addresses_are_reached_unless_it_is_said() {
        let (nobody, private) = (Reach::default(), Reach { private: true, networks: Vec::new() });
        for address in PUBLIC {
            assert!(!refused(&nobody, address), "{address}");
        }
        for address in PRIVATE {
            assert!(refused(&nobody, address), "{address}");
            assert!(!refused(&private, address), "{address}");
        }
        for address in NEVER {
            assert!(refused(&nobody, address) && refused(&private, address), "{address}");
        }
    }

    #[test]
    fn a_network_that_is_named_is_reached_and_nothing_beside_it() {
        let network = Network { address: "10.1.0.0".parse().unwrap(), bits: 16 };
        let reach = Reach { private: false, networks: vec![network] };
        assert!(!refused(&reach, "10.1.255.1") && !refused(&reach, "::ffff:10.1.0.1"));
        assert!(refused(&reach, "10.2.0.1") && refused(&reach, "127.0.0.1"));
        let all = Network { address: "0.0.0.0".parse().unwrap(), bits: 0 };
        assert!(all.has("9.9.9.9".parse().unwrap()) && !all.has("::1".parse().unwrap()));
    }
}
