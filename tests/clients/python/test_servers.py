"""Which server counts a name: the code of docs/recipes/several-servers.md."""

import os
import re
import unittest

import servers


def page():
    path = os.path.join(os.environ["COUNTERX_ROOT"], "docs/recipes/several-servers.md")
    with open(path, encoding="utf-8") as file:
        return file.read()


def examples():
    """Name, server of two, server of three: the table that SQL has made."""
    rows = re.findall(r"^ (\S+) +\| ([abc]) +\| ([abc])$", page(), re.MULTILINE)
    return [row for row in rows if row[0] != "name"]


class Servers(unittest.TestCase):
    def test_as_in_sql(self):
        self.assertGreaterEqual(len(examples()), 10)
        for name, of_two, of_three in examples():
            self.assertEqual(servers.server_of(name, ["a", "b"]), of_two, name)
            self.assertEqual(servers.server_of(name, ["c", "a", "b"]), of_three, name)

    def test_only_to_the_new_server(self):
        names = [f"name:{n}" for n in range(3000)]
        before = {name: servers.server_of(name, ["a", "b", "c"]) for name in names}
        after = {name: servers.server_of(name, ["d", "a", "c", "b"]) for name in names}
        moved = [name for name in names if before[name] != after[name]]
        self.assertTrue(all(after[name] == "d" for name in moved))
        for server in "abcd":
            # A quarter each. The hash is what it is: this does not depend on chance.
            self.assertTrue(600 < list(after.values()).count(server) < 900)
