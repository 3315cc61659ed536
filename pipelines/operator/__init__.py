"""The custom resources: what a Recaption and a RecaptionSchedule ask for, done again and again until it is so.

Decisions are pure functions of what is observed (`decide`, `schedules`); everything else is thin I/O around them.
"""
