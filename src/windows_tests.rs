//! Tests of windows, inside of the server: where days and months begin and end, and what is kept in memory of a type.

#[pgrx::pg_schema]
mod tests {
    use crate::bounds::types;
    use crate::bounds::windowed::Windowed;
    use crate::pg::time::Calendar;
    use counterx_core::escrow::Bounds;
    use counterx_core::history::{DAY, HOUR, MINUTE, Unit};
    use counterx_core::windows::{Kind, Length, Stored, Window};
    use pgrx::prelude::*;

    /// In microseconds since 2000.
    fn time(text: &str) -> i64 {
        let time = Spi::get_one_with_args::<TimestampWithTimeZone>(
            "SELECT $1::timestamptz",
            &[text.into()],
        );
        pg_sys::TimestampTz::from(time.unwrap().unwrap())
    }

    /// What clocks show in a zone then.
    fn local(time: i64, zone: &str) -> String {
        let sql = "SELECT to_char($1 AT TIME ZONE $2, 'YYYY-MM-DD HH24:MI')";
        let time = TimestampWithTimeZone::try_from(time).unwrap();
        Spi::get_one_with_args::<String>(sql, &[time.into(), zone.into()])
            .unwrap()
            .unwrap()
    }

    fn calendar(length: Length, zone: &str) -> Calendar {
        let unit = match length {
            Length::Month => Unit::Month,
            Length::Day => Unit::Day,
            Length::Fixed(_) => Unit::Event,
        };
        Calendar::new(unit, zone.as_bytes())
    }

    /// Days around those on which clocks are set: they begin at midnight, or when clocks were set past it, and one
    /// follows the other.
    #[pg_test]
    fn windows_of_days() {
        // A zone, a day, its first minute there, and how many minutes it has.
        let days = [
            ("UTC", "2026-03-29", "00:00", 24 * 60),
            ("Europe/Berlin", "2026-03-28", "00:00", 24 * 60),
            ("Europe/Berlin", "2026-03-29", "00:00", 23 * 60),
            ("Europe/Berlin", "2026-10-25", "00:00", 25 * 60),
            ("Europe/Berlin", "2026-10-26", "00:00", 24 * 60),
            // Midnight does not exist.
            ("America/Santiago", "2026-09-06", "01:00", 23 * 60),
            ("America/Santiago", "2026-09-05", "00:00", 24 * 60),
            // The last hour comes twice.
            ("America/Santiago", "2026-04-04", "00:00", 25 * 60),
            ("America/Santiago", "2026-04-05", "00:00", 24 * 60),
            // Midnight comes twice.
            ("America/Havana", "2026-11-01", "00:00", 25 * 60),
            ("America/Havana", "2026-03-08", "01:00", 23 * 60),
            // By half an hour.
            ("Australia/Lord_Howe", "2026-04-05", "00:00", 24 * 60 + 30),
            ("Australia/Lord_Howe", "2026-10-04", "00:00", 24 * 60 - 30),
            ("Asia/Kathmandu", "2026-06-01", "00:00", 24 * 60),
            // The day before was left out.
            ("Pacific/Apia", "2011-12-31", "00:00", 24 * 60),
            ("Pacific/Apia", "2011-12-29", "00:00", 24 * 60),
        ];
        for (zone, day, first, minutes) in days {
            let known = &mut calendar(Length::Day, zone);
            let noon = time(&format!("{day} 12:00 {zone}"));
            let window = Window::at(Length::Day, known, noon).unwrap();
            assert_eq!(
                local(window.start, zone),
                format!("{day} {first}"),
                "{zone}"
            );
            assert_eq!(window.end - window.start, minutes * MINUTE, "{zone} {day}");
            assert!(
                local(window.start - 1, zone) < format!("{day} 00:00"),
                "{zone} {day}"
            );
            assert!(
                local(window.end, zone) > format!("{day} 24:00"),
                "{zone} {day}"
            );
            check_sequence(Length::Day, zone, window);
        }
    }

    #[pg_test]
    fn windows_of_months() {
        let hours = |days: i64, more: i64| (days * 24 + more) * 60;
        // A zone, a month, its first minute there, and how many minutes it has.
        let months = [
            ("UTC", "2026-03", "00:00", hours(31, 0)),
            ("Europe/Berlin", "2026-03", "00:00", hours(31, -1)),
            ("Europe/Berlin", "2026-10", "00:00", hours(31, 1)),
            ("Europe/Berlin", "2027-02", "00:00", hours(28, 0)),
            ("Europe/Berlin", "2028-02", "00:00", hours(29, 0)),
            ("America/Santiago", "2026-09", "00:00", hours(30, -1)),
            ("America/Santiago", "2026-04", "00:00", hours(30, 1)),
            ("America/Havana", "2026-11", "00:00", hours(30, 1)),
            ("Australia/Lord_Howe", "2026-04", "00:00", hours(30, 0) + 30),
            ("Australia/Lord_Howe", "2026-10", "00:00", hours(31, 0) - 30),
            ("Pacific/Apia", "2011-12", "00:00", hours(30, 0)),
            // Midnight of the first of a month does not exist.
            ("America/Asuncion", "2017-10", "01:00", hours(31, -1)),
        ];
        for (zone, month, first, minutes) in months {
            let known = &mut calendar(Length::Month, zone);
            let inside = time(&format!("{month}-15 12:00 {zone}"));
            let window = Window::at(Length::Month, known, inside).unwrap();
            assert_eq!(
                local(window.start, zone),
                format!("{month}-01 {first}"),
                "{zone}"
            );
            assert_eq!(
                window.end - window.start,
                minutes * MINUTE,
                "{zone} {month}"
            );
            check_sequence(Length::Month, zone, window);
        }
    }

    /// A window is the same one for each of its times, by a calendar that knows nothing yet and by one that has looked at
    /// other times; and it lies between its neighbours.
    fn check_sequence(length: Length, zone: &str, window: Window) {
        let used = &mut calendar(length, zone);
        let step = (window.end - window.start) / 13;
        let inside = (0..13).map(|i| window.start + i * step);
        let edges = [
            window.start,
            window.start + 1,
            window.end - 1,
            window.end - MINUTE,
        ];
        for time in inside.chain(edges) {
            assert_eq!(Window::at(length, used, time), Some(window), "{zone}");
            let fresh = &mut calendar(length, zone);
            assert_eq!(Window::at(length, fresh, time), Some(window), "{zone}");
        }
        let next = window.after(length, used).unwrap();
        assert_eq!(next.start, window.end, "{zone}");
        assert_eq!(next.before(length, used), Some(window), "{zone}");
        let before = window.before(length, used).unwrap();
        assert_eq!(before.end, window.start, "{zone}");
        assert_eq!(before.after(length, used), Some(window), "{zone}");
        assert_eq!(window.first_kept(1, length, used), before.start, "{zone}");
        assert_eq!(window.first_kept(0, length, used), window.start, "{zone}");
    }

    /// The window that is known of a type is the right one for whatever time is asked for next, also an earlier one.
    #[pg_test]
    fn known_window_is_that_of_the_time() {
        let cases = [
            (Length::Day, "Europe/Berlin", "2026-03-27 00:00+00"),
            (Length::Day, "America/Santiago", "2026-09-04 00:00+00"),
            (Length::Month, "Australia/Lord_Howe", "2026-03-30 00:00+00"),
            (Length::Fixed(90 * MINUTE), "UTC", "2026-03-27 00:00+00"),
            (Length::Fixed(MINUTE / 60), "UTC", "2026-03-27 00:00+00"),
        ];
        for (length, zone, from) in cases {
            let new = || Windowed::new(b"t", (length, Kind::Fixed), zone.as_bytes(), 2, false);
            let (windowed, from) = (new(), time(from));
            // Forth and back, within windows and over their ends.
            let mut number: i64 = 1;
            for _ in 0..300 {
                number = number * 7919 % 999_983;
                let time = from + number * (4 * DAY / 999_983) + number % 3 - 1;
                let (window, stored) = windowed.stored(b"t:name", time);
                assert!(window.contains(time), "{length:?} {zone}");
                assert_eq!(new().stored(b"t:name", time).0, window, "{length:?} {zone}");
                assert!(stored.get().starts_with(windowed.prefix(time).get()));
                let parts = Stored::of(stored.get()).unwrap();
                assert_eq!((parts.start, parts.rest), (window.start, &b"name"[..]));
                for edge in [window.start, window.end - 1, window.end, window.start - 1] {
                    assert_eq!(
                        windowed.stored(b"t:name", edge).0,
                        new().stored(b"t:name", edge).0
                    );
                }
            }
        }
    }

    #[pg_test]
    fn kept_windows_and_those_that_are_not() {
        let windowed = Windowed::new(b"t", (Length::Day, Kind::Fixed), b"Europe/Berlin", 2, false);
        let now = time("2026-03-30 12:00 Europe/Berlin");
        let kept = windowed.kept(now);
        let starts: Vec<i64> = kept.iter().map(|window| window.start).collect();
        assert_eq!(
            starts,
            [time("2026-03-28 23:00+00"), time("2026-03-27 23:00+00")]
        );
        assert_eq!(kept[0].end - kept[0].start, 23 * HOUR);
        // One more is left where others may go by other rules of the zone.
        let (ended, first) = windowed.ended(now).unwrap();
        assert_eq!(first, time("2026-03-26 23:00+00"));
        let stored = |time| windowed.stored(b"t:a", time).1.get().to_vec();
        assert!(ended.contains(&stored(first - 1)));
        assert!(!ended.contains(&stored(first)));
        assert!(!ended.contains(&stored(now)));
        assert!(!ended.contains(b"t:a") && !ended.contains(b"t") && !ended.contains(b"u:a"));
        let hours = Windowed::new(b"t", (Length::Fixed(HOUR), Kind::Fixed), b"UTC", 2, false);
        let (_, first) = hours.ended(now).unwrap();
        assert_eq!(first, time("2026-03-30 08:00+00"));
        assert_eq!(hours.kept(now).last().unwrap().start, first);
    }

    fn define(sql: &str) {
        Spi::run(sql).unwrap();
    }

    /// What a call goes by, for each kind of type.
    #[pg_test]
    fn limits_of_types_with_windows() {
        let bounds = |min, max| Bounds { min, max };
        assert!(types::limits_of(b"window_free:a").is_none());
        assert!(types::window_of(b"window_free:a").is_none());
        define("SELECT counter_type_create('window_free', per => '1 hour')");
        define("SELECT counter_type_create('window_both', -1, 5, per => '1 day', kept => 1)");
        define("SELECT counter_type_create('window_none', max => 5)");
        define("SELECT counter_type_create('window_words', description => 'nothing else')");
        define(
            "SELECT counter_type_create('window_slow', max => 9, per => '1 minute', sliding => true)",
        );
        let free = types::limits_of(b"window_free:a").unwrap();
        assert_eq!(free.bounds, Bounds::default());
        let both = types::limits_of(b"window_both:a").unwrap();
        assert_eq!(both.bounds, bounds(Some(-1), Some(5)));
        let none = types::limits_of(b"window_none:a").unwrap();
        assert_eq!((none.bounds, none.window), (bounds(None, Some(5)), None));
        assert!(types::limits_of(b"window_words:a").is_none());
        assert!(types::limits_of(b"window_free").is_none());
        assert!(types::limits_of(b"window_fre:a").is_none());
        // By the stored name as well: what is written early is looked at by that.
        let windowed = types::window(both.window.unwrap());
        let (_, stored) = windowed.stored(b"window_both:a", time("2026-03-29 00:00+00"));
        assert_eq!(types::limits_of(stored.get()), Some(both));
        assert_eq!(&*types::plain(stored.get()), b"window_both:a");
        // Each type has its own.
        let kind = |name: &[u8]| types::window_of(name).map(|window| window.kind());
        assert_eq!(kind(b"window_free:a"), Some(Kind::Fixed));
        assert_eq!(kind(b"window_slow:a"), Some(Kind::Sliding));
        assert_eq!(kind(b"window_none:a"), None);
        assert_eq!(kind(b"window_words:a"), None);
        assert_eq!(kind(b"window_slow"), None);
        // Another definition is another one.
        define("SELECT counter_type_alter('window_both', max => 4)");
        let tighter = types::limits_of(b"window_both:a").unwrap();
        assert_eq!(tighter.bounds, bounds(Some(-1), Some(4)));
        assert_ne!(tighter.generation, both.generation);
        define("SELECT counter_type_drop('window_free')");
        assert!(types::limits_of(b"window_free:a").is_none());
        assert_eq!(kind(b"window_slow:a"), Some(Kind::Sliding));
    }
}
