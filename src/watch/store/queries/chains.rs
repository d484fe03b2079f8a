//! Chains, sources, windows.

use super::statement::{Tx, contradiction, hash, height, place, stored, values};
use super::upkeep;
use crate::core::chain_view::Link;
use crate::core::id::ChainId;
use crate::ports::watch_store::{ChainPin, ChainState, SourceState, WatchStoreError};
use sqlx::FromRow;

statements! {
    META = "SELECT value FROM meta WHERE key = $1";
    SET_META = "INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO NOTHING";
    CHAIN = "SELECT chain_id, genesis, cursor_number, cursor_hash, final_number, final_hash, halted \
             FROM chain WHERE name = $1";
    CHAIN_NAMES = "SELECT name FROM chain ORDER BY name";
    ADD_CHAIN = "INSERT INTO chain (name, chain_id, genesis, cursor_number, cursor_hash, \
                 final_number, final_hash, halted) VALUES ($1, $2, $3, $4, $5, -1, $6, '') \
                 ON CONFLICT (name) DO NOTHING";
    ADD_BLOCK = "INSERT INTO block (chain, number, hash, parent) VALUES ($1, $2, $3, $4)";
    BLOCKS = "SELECT number, hash, parent FROM block WHERE chain = $1 ORDER BY number";
    SOURCES = "SELECT s.name, s.definition, s.next_block, COALESCE(p.to_block, -1) FROM source s \
               LEFT JOIN progress p ON p.source = s.name WHERE s.chain = $1 ORDER BY s.name";
    SOURCE = "SELECT chain, definition FROM source WHERE name = $1";
    ADD_SOURCE = "INSERT INTO source (name, chain, definition, next_block, first_block) \
                  VALUES ($1, $2, $3, $4, $4) ON CONFLICT (name) DO NOTHING";
    REWIND = "UPDATE source SET next_block = $2, \
              first_block = CASE WHEN first_block > $2 THEN $2 ELSE first_block END \
              WHERE name = $1 AND next_block > $2";
    SET_HALTED = "UPDATE chain SET halted = $2 WHERE name = $1";
}

#[derive(FromRow)]
struct ChainRow {
    chain_id: i64,
    genesis: Vec<u8>,
    cursor_number: i64,
    cursor_hash: Vec<u8>,
    final_number: i64,
    final_hash: Vec<u8>,
    halted: String,
}

pub(super) async fn meta(tx: &mut Tx, key: &str) -> Result<bool, WatchStoreError> {
    Ok(tx.one::<(String,)>(META, values![key]).await?.is_some())
}

pub(super) async fn set_meta(tx: &mut Tx, key: &str, value: &str) -> Result<bool, WatchStoreError> {
    Ok(tx.execute(SET_META, values![key, value]).await? == 1)
}

pub(super) async fn register(
    tx: &mut Tx,
    pin: &ChainPin,
    anchor: Link,
) -> Result<(), WatchStoreError> {
    let name = pin.name.as_str();
    let chain_id = stored(pin.chain_id.get())?;
    let number = stored(anchor.number)?;
    let row = values![name, chain_id, pin.genesis, number, anchor.hash];
    let row = [row, vec![super::statement::Value::Bytes(Vec::new())]].concat();
    if tx.execute(ADD_CHAIN, row).await? == 1 {
        tx.execute(ADD_BLOCK, values![name, number, anchor.hash, anchor.parent]).await?;
        return Ok(());
    }
    let known = tx.one::<ChainRow>(CHAIN, values![name]).await?;
    let known = known.ok_or_else(|| contradiction("a chain that was there is not"))?;
    if known.chain_id != chain_id || hash(&known.genesis)? != pin.genesis {
        return Err(contradiction(format!(
            "chain {name} was pinned to chain id {} with genesis {}, but is now {} with genesis {}",
            known.chain_id,
            hash(&known.genesis)?,
            pin.chain_id,
            pin.genesis
        )));
    }
    Ok(())
}

pub(super) async fn add_source(
    tx: &mut Tx,
    chain: &str,
    source: &SourceState,
) -> Result<(), WatchStoreError> {
    let name = source.name.as_str();
    let row = values![name, chain, &source.definition, stored(source.next_block)?];
    if tx.execute(ADD_SOURCE, row).await? == 1 {
        return upkeep::began(tx, name, stored(source.next_block)?).await;
    }
    let known = tx.one::<(String, String)>(SOURCE, values![name]).await?;
    match known {
        Some((on, definition)) if on == chain && definition == source.definition => Ok(()),
        Some((on, definition)) => Err(contradiction(format!(
            "source {name} watched {definition} on {on} before; what watches {} on {chain} needs \
             another name",
            source.definition
        ))),
        None => Err(contradiction("a source that was there is not")),
    }
}

pub(super) async fn load(tx: &mut Tx, name: &str) -> Result<Option<ChainState>, WatchStoreError> {
    let Some(row) = tx.one::<ChainRow>(CHAIN, values![name]).await? else { return Ok(None) };
    let blocks = tx.all::<(i64, Vec<u8>, Vec<u8>)>(BLOCKS, values![name]).await?;
    let link = |(number, own, parent): &(i64, Vec<u8>, Vec<u8>)| {
        Ok(Link { number: height(*number)?, hash: hash(own)?, parent: hash(parent)? })
    };
    let sources = tx.all::<(String, String, i64, i64)>(SOURCES, values![name]).await?;
    let source = |(name, definition, next, to): (String, String, i64, i64)| {
        let (next_block, to_block) = (height(next)?, u64::try_from(to).ok());
        Ok(SourceState { name, definition, next_block, to_block })
    };
    let finalized =
        if row.final_number < 0 { None } else { Some(place(row.final_number, &row.final_hash)?) };
    Ok(Some(ChainState {
        pin: ChainPin {
            name: name.to_owned(),
            chain_id: ChainId::new(height(row.chain_id)?),
            genesis: hash(&row.genesis)?,
        },
        cursor: place(row.cursor_number, &row.cursor_hash)?,
        finalized,
        halted: Some(row.halted).filter(|why| !why.is_empty()),
        window: blocks.iter().map(link).collect::<Result<_, WatchStoreError>>()?,
        sources: sources.into_iter().map(source).collect::<Result<_, WatchStoreError>>()?,
    }))
}

pub(super) async fn load_all(tx: &mut Tx) -> Result<Vec<ChainState>, WatchStoreError> {
    let mut chains = Vec::new();
    for (name,) in tx.all::<(String,)>(CHAIN_NAMES, Vec::new()).await? {
        chains.extend(load(tx, &name).await?);
    }
    Ok(chains)
}

pub(super) async fn set_halted(tx: &mut Tx, name: &str, why: &str) -> Result<(), WatchStoreError> {
    tx.execute(SET_HALTED, values![name, why]).await.map(|_| ())
}

pub(super) async fn rewind(tx: &mut Tx, name: &str, from: u64) -> Result<bool, WatchStoreError> {
    // Block 0 has no logs.
    let from = stored(from.max(1))?;
    let moved = tx.execute(REWIND, values![name, from]).await? == 1;
    if moved {
        upkeep::sent_back(tx, name, from).await?;
    }
    Ok(moved)
}
