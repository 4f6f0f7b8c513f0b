"""Which job goes where, and when: a pure object, told what happens and asked what to do, by whoever has a clock."""
