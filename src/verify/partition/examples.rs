//! An example with its neighbours: the records around it, and around those that it refers to.

use super::super::finding::{Example, Kind, Neighbour};
use super::super::key::Key;
use super::super::outputs::Output;
use super::rows::Link;
use super::{Partition, Spot};

/// Rows on each side of an example.
const NEIGHBOURS: i64 = 4;

impl Partition {
    pub(super) fn key(&self, link: Link) -> Option<Key> {
        self.rows.get(link).filter(|(_, tag)| tag.identified()).map(|(row, _)| row.key)
    }

    pub(super) fn example(&self, kind: Kind, spot: Spot) -> Example {
        let around = self.rows.around(spot.offset);
        let key = self.rows.find(spot.offset).and_then(|link| self.key(link));
        let mut links: Vec<Link> = Vec::new();
        for center in std::iter::once(around).chain(spot.others) {
            for step in -NEIGHBOURS..=NEIGHBOURS {
                let link = i64::from(center) + step;
                links.extend(Link::try_from(link).ok().filter(|link| *link > 0));
            }
        }
        links.sort_unstable();
        links.dedup();
        Example {
            kind,
            topic: self.bounds.topic.clone(),
            partition: self.bounds.partition,
            offset: spot.offset,
            detail: spot.detail,
            neighbours: links.iter().filter_map(|link| self.neighbour(*link, key)).collect(),
        }
    }

    fn neighbour(&self, link: Link, of: Option<Key>) -> Option<Neighbour> {
        let (row, tag) = self.rows.get(link)?;
        let at = self.outputs.partition_point(|output| output.source < row.offset);
        let output = self.outputs.get(at).filter(|output| output.source == row.offset);
        let key = self.key(link);
        Some(Neighbour {
            offset: row.offset,
            client_key: None,
            key: key.map(|key| format!("{:032x}", u128::from_be_bytes(key))),
            time: row.time,
            fate: tag.fate(),
            output: output.map(Output::place),
            same_key: key.is_some() && key == of,
        })
    }
}
