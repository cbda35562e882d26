//! What the primary does: writes, flushes, and epochs of which only the barrier is left.

use super::types::Item;

/// A script from its short form: a digit writes to that block, `|` flushes, `-` is a hollow epoch.
pub(crate) fn script(text: &str) -> Vec<Item> {
    let mut value = 0;
    let items = text.bytes().map(|byte| match byte {
        b'|' => Item::Barrier,
        b'-' => Item::Hollow,
        digit => {
            value += 1;
            Item::Write { block: digit - b'0', value }
        }
    });
    items.collect()
}

/// Every script of so many writes to blocks below `blocks`, with a flush at its end and at every choice of places before,
/// or a hollow epoch there instead of a flush alone.
pub(crate) fn every(writes: u32, blocks: u32) -> Vec<Vec<Item>> {
    let mut all = Vec::new();
    for targets in 0..blocks.pow(writes) {
        for flushes in 0..3_u32.pow(writes - 1) {
            let mut text = String::new();
            for position in 0..writes {
                let block = targets / blocks.pow(position) % blocks;
                text.extend(char::from_digit(block, 10));
                if position + 1 < writes {
                    text.push_str(["", "|", "|-"][(flushes / 3_u32.pow(position) % 3) as usize]);
                }
            }
            text.push('|');
            all.push(script(&text));
        }
    }
    all
}
