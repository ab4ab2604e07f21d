//! The events: departures from New York's airports, and the counters that each of them moves.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result};
use flate2::read::GzDecoder;
use serde::Deserialize;

/// A departure counts as delayed when it was later than this.
const DELAYED_AFTER_MINUTES: i32 = 15;

/// One line of the file; its other columns count nothing.
#[derive(Debug, Deserialize)]
pub(crate) struct Departure {
    carrier: String,
    origin: String,
    /// In minutes; empty for a flight that never left.
    dep_delay: Option<i32>,
}

impl Departure {
    /// The counters that this departure adds one to.
    pub(crate) fn counters(&self) -> Vec<String> {
        let mut names = vec![
            "flights".to_owned(),
            format!("flights:origin:{}", self.origin),
            format!("flights:carrier:{}", self.carrier),
        ];
        match self.dep_delay {
            None => names.push("flights:cancelled".to_owned()),
            Some(delay) if delay > DELAYED_AFTER_MINUTES => {
                names.push("flights:delayed".to_owned());
            }
            Some(_) => {}
        }
        names
    }
}

/// The file's text, header line included.
pub(crate) fn text() -> Result<impl Read + Send> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/flights.csv.gz");
    let file = File::open(&path).with_context(|| format!("could not open {}", path.display()))?;
    Ok(GzDecoder::new(BufReader::new(file)))
}

/// All departures, in the order of the file.
pub(crate) fn read() -> Result<impl Iterator<Item = Result<Departure>> + Send> {
    Ok(parse(text()?))
}

/// How many there are.
pub(crate) fn count() -> Result<u64> {
    let mut count = 0;
    for departure in read()? {
        departure?;
        count += 1;
    }
    Ok(count)
}

fn parse(text: impl Read + Send) -> impl Iterator<Item = Result<Departure>> + Send {
    csv::Reader::from_reader(text)
        .into_deserialize()
        .map(|line| line.context("could not read a departure"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_departure_moves_its_counters() {
        let text = "\
departure,carrier,flight,origin,dest,dep_delay,arr_delay
2013-01-01 05:15,UA,1545,EWR,IAH,15,11
2013-01-01 05:16,B6,1,JFK,BQN,16,
2013-01-01 05:17,AA,2,LGA,MIA,,
";
        let names: Vec<String> = parse(text.as_bytes())
            .map(|departure| departure.unwrap().counters().join(" "))
            .collect();
        assert_eq!(
            names,
            [
                "flights flights:origin:EWR flights:carrier:UA",
                "flights flights:origin:JFK flights:carrier:B6 flights:delayed",
                "flights flights:origin:LGA flights:carrier:AA flights:cancelled",
            ]
        );
    }

    #[test]
    fn the_file_is_whole() {
        assert_eq!(count().unwrap(), 336_776);
    }
}
