//! What names mean: contracts with their ABIs, destination lists, assets, native units. Everything
//! is bound to (chain, address); there is no global directory of selectors.

use super::abi::ContractAbi;
use super::condition::read_address;
use super::syntax::{AssetsFile, BookFile, RawAsset, RawContract, RawList, RawNative};
use super::{At, check_name, line_of};
use crate::core::id::ChainName;
use alloy::primitives::Address;
use std::collections::{BTreeMap, BTreeSet};

/// A contract of the book.
#[derive(Clone, Debug)]
pub struct Contract {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub address: Address,
    /// Its interface, if the book binds one.
    pub abi: Option<ContractAbi>,
    /// What it does with calls that are inside its calldata; `None` if nothing is known.
    pub wraps: Option<Wrapper>,
}

/// Contracts whose functions carry other calls. Which functions those are is known for each kind; a wrapper
/// is believed only at the address that the book binds to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrapper {
    /// Multicall3 (`aggregate`, `aggregate3`, `aggregate3Value`, …): calls others as itself.
    Multicall3,
    /// A contract with `multicall(bytes[])`: calls itself, as whoever called it.
    SelfMulticall,
    /// A Safe: `execTransaction` calls another as itself.
    Safe,
    /// A MultiSend of a Safe: only by delegatecall, as the Safe.
    MultiSend,
    /// An ERC-4337 account: `execute` and `executeBatch` call others as itself.
    SmartAccount,
    /// Permit2: allowances over many tokens.
    Permit2,
    /// Seaport: orders.
    Seaport,
}

impl Wrapper {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::Multicall3,
        Self::SelfMulticall,
        Self::Safe,
        Self::MultiSend,
        Self::SmartAccount,
        Self::Permit2,
        Self::Seaport,
    ];

    /// The name in `book.toml`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Multicall3 => "multicall3",
            Self::SelfMulticall => "multicall",
            Self::Safe => "safe",
            Self::MultiSend => "multisend",
            Self::SmartAccount => "smart-account",
            Self::Permit2 => "permit2",
            Self::Seaport => "seaport",
        }
    }
}

/// Which standard an asset follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standard {
    /// Fungible tokens; functions of ERC-777 and EIP-2612, DAI's permit and EIP-3009 too.
    Erc20,
    /// One of each.
    Erc721,
    /// Many of each.
    Erc1155,
}

impl Standard {
    /// The name in `assets.toml`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Erc20 => "erc20",
            Self::Erc721 => "erc721",
            Self::Erc1155 => "erc1155",
        }
    }
}

/// A registered asset.
#[derive(Clone, Debug)]
pub struct Asset {
    /// Its name.
    pub name: String,
    /// Its contract.
    pub address: Address,
    /// How many of its digits are behind the point; 0 for tokens that are not fungible.
    pub decimals: u8,
    /// Which functions it has.
    pub standard: Standard,
}

/// All names of a bundle.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    contracts: BTreeMap<(ChainName, Address), Contract>,
    assets: BTreeMap<(ChainName, Address), Asset>,
    lists: BTreeMap<(ChainName, String), BTreeSet<Address>>,
    natives: BTreeMap<ChainName, u8>,
}

impl Registry {
    /// The contract at an address.
    #[must_use]
    pub fn contract_at(&self, chain: &ChainName, address: Address) -> Option<&Contract> {
        self.contracts.get(&(chain.clone(), address))
    }

    /// The contract with a name.
    #[must_use]
    pub fn contract(&self, chain: &ChainName, name: &str) -> Option<&Contract> {
        let mut all = self.contracts.iter();
        all.find(|((at, _), contract)| at == chain && contract.name == name)
            .map(|(_, contract)| contract)
    }

    /// The asset at an address.
    #[must_use]
    pub fn asset_at(&self, chain: &ChainName, address: Address) -> Option<&Asset> {
        self.assets.get(&(chain.clone(), address))
    }

    /// The asset with a name.
    #[must_use]
    pub fn asset(&self, chain: &ChainName, name: &str) -> Option<&Asset> {
        let mut all = self.assets.iter();
        all.find(|((at, _), asset)| at == chain && asset.name == name).map(|(_, asset)| asset)
    }

    /// A list of destinations; never empty.
    #[must_use]
    pub fn list(&self, chain: &ChainName, name: &str) -> Option<&BTreeSet<Address>> {
        self.lists.get(&(chain.clone(), name.to_owned()))
    }

    /// Decimals of a chain's own currency: 18 unless the bundle says otherwise.
    #[must_use]
    pub fn native_decimals(&self, chain: &ChainName) -> u8 {
        self.natives.get(chain).copied().unwrap_or(18)
    }

    /// Every chain that is named.
    pub fn chains(&self) -> impl Iterator<Item = &ChainName> {
        let contracts = self.contracts.keys().map(|(chain, _)| chain);
        let assets = self.assets.keys().map(|(chain, _)| chain);
        let lists = self.lists.keys().map(|(chain, _)| chain);
        contracts.chain(assets).chain(lists).chain(self.natives.keys())
    }

    /// Every contract with its chain, by chain and address.
    pub fn contracts(&self) -> impl Iterator<Item = (&ChainName, &Contract)> {
        self.contracts.iter().map(|((chain, _), contract)| (chain, contract))
    }

    /// Every asset with its chain, by chain and address.
    pub fn assets(&self) -> impl Iterator<Item = (&ChainName, &Asset)> {
        self.assets.iter().map(|((chain, _), asset)| (chain, asset))
    }

    /// Every list of destinations, by chain and name.
    pub fn lists(&self) -> impl Iterator<Item = (&ChainName, &str, &BTreeSet<Address>)> {
        self.lists.iter().map(|((chain, name), list)| (chain, name.as_str(), list))
    }

    /// Puts the registry together. `abis` are the ABI files by path; `text` finds lines.
    pub(super) fn read(
        book: (&BookFile, &str),
        assets: (&AssetsFile, &str),
        abis: &BTreeMap<String, ContractAbi>,
    ) -> Result<Self, super::BundleError> {
        let mut registry = Self::default();
        for raw in &book.0.contract {
            let at = At { file: "book.toml", line: line_of(book.1, raw.span().start) };
            registry.add_contract(raw.get_ref(), abis).map_err(|problem| at.error(problem))?;
        }
        for raw in &book.0.list {
            let at = At { file: "book.toml", line: line_of(book.1, raw.span().start) };
            registry.add_list(raw.get_ref()).map_err(|problem| at.error(problem))?;
        }
        for raw in &assets.0.asset {
            let at = At { file: "assets.toml", line: line_of(assets.1, raw.span().start) };
            registry.add_asset(raw.get_ref()).map_err(|problem| at.error(problem))?;
        }
        for raw in &assets.0.native {
            let at = At { file: "assets.toml", line: line_of(assets.1, raw.span().start) };
            registry.add_native(raw.get_ref()).map_err(|problem| at.error(problem))?;
        }
        Ok(registry)
    }

    fn add_contract(
        &mut self,
        raw: &RawContract,
        abis: &BTreeMap<String, ContractAbi>,
    ) -> Result<(), String> {
        let (name, chain) = (check_name("name", &raw.name)?, chain_name(&raw.chain)?);
        let address = read_address(&raw.address)?;
        if self.contract(&chain, &name).is_some() {
            return Err(format!("contract `{name}` is there twice on `{chain}`"));
        }
        let abi = match &raw.abi {
            None => None,
            Some(path) => {
                Some(abis.get(path).cloned().ok_or_else(|| format!("there is no file `{path}`"))?)
            }
        };
        let wraps = match &raw.wraps {
            None => None,
            Some(kind) => Some(read_wrapper(kind)?),
        };
        let contract = Contract { name: name.clone(), address, abi, wraps };
        if let Some(other) = self.contracts.insert((chain, address), contract) {
            return Err(format!("`{name}` and `{}` have the same address", other.name));
        }
        Ok(())
    }

    fn add_list(&mut self, raw: &RawList) -> Result<(), String> {
        let (name, chain) = (check_name("name", &raw.name)?, chain_name(&raw.chain)?);
        let addresses = read_addresses("addresses", &raw.addresses)?;
        if self.lists.insert((chain, name.clone()), addresses).is_some() {
            return Err(format!("list `{name}` is there twice"));
        }
        Ok(())
    }

    fn add_asset(&mut self, raw: &RawAsset) -> Result<(), String> {
        let (name, chain) = (check_name("name", &raw.name)?, chain_name(&raw.chain)?);
        if self.asset(&chain, &name).is_some() {
            return Err(format!("asset `{name}` is there twice on `{chain}`"));
        }
        let (standard, decimals) = match (raw.standard.as_deref(), raw.decimals) {
            (None | Some("erc20"), Some(decimals)) => (Standard::Erc20, decimals),
            (Some("erc721"), None | Some(0)) => (Standard::Erc721, 0),
            (Some("erc1155"), None | Some(0)) => (Standard::Erc1155, 0),
            (None | Some("erc20"), None) => return Err("`decimals` is missing".to_owned()),
            (Some("erc721" | "erc1155"), Some(_)) => {
                return Err("tokens that are not fungible have no decimals".to_owned());
            }
            (Some(other), _) => {
                return Err(format!("standard: `{other}` is not erc20, erc721 or erc1155"));
            }
        };
        if decimals > 77 {
            return Err("no amount of 256 bits has more than 77 decimals".to_owned());
        }
        let address = read_address(&raw.address)?;
        let asset = Asset { name: name.clone(), address, decimals, standard };
        if let Some(other) = self.assets.insert((chain, address), asset) {
            return Err(format!("`{name}` and `{}` have the same address", other.name));
        }
        Ok(())
    }

    fn add_native(&mut self, raw: &RawNative) -> Result<(), String> {
        let chain = chain_name(&raw.chain)?;
        if raw.decimals > 77 {
            return Err("no amount of 256 bits has more than 77 decimals".to_owned());
        }
        if self.natives.insert(chain, raw.decimals).is_some() {
            return Err(format!("the native unit of `{}` is there twice", raw.chain));
        }
        Ok(())
    }
}

fn read_wrapper(kind: &str) -> Result<Wrapper, String> {
    Wrapper::ALL.into_iter().find(|known| known.name() == kind).ok_or_else(|| {
        let known = Wrapper::ALL.map(Wrapper::name).join(", ");
        format!("wraps: `{kind}` is unknown; known are {known}")
    })
}

/// Reads a chain's name.
pub(super) fn chain_name(text: &str) -> Result<ChainName, String> {
    check_name("chain", text).map(ChainName::new)
}

/// Reads a list of addresses, refusing an empty one and repetitions.
pub(super) fn read_addresses(field: &str, texts: &[String]) -> Result<BTreeSet<Address>, String> {
    let mut addresses = BTreeSet::new();
    for text in texts {
        if !addresses.insert(read_address(text)?) {
            return Err(format!("{field}: `{text}` is there twice"));
        }
    }
    if addresses.is_empty() {
        return Err(format!("{field} is empty: an empty list never means \"all\""));
    }
    Ok(addresses)
}
