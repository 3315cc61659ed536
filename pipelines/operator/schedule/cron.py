"""The times of a schedule: a cron expression in a time zone.

When the clocks change, an expression with fixed times means what it means to Debian's cron: a time in the hour that is
left out comes when that hour would have ended, a time in the hour that comes twice comes once.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from components.base.errors import PermanentError

FIELDS = "minute, hour, day of the month, month, day of the week"


@dataclass(frozen=True)
class CronTimes:
    """The moments that a cron expression names, in UTC and without seconds."""

    cron: str
    zone: ZoneInfo

    @classmethod
    def parse(cls, cron: str, zone: str) -> CronTimes:
        """Parse a cron expression and a time zone. Raises PermanentError: a line per mistake, by field."""
        problems, found = [], None
        if len(cron.split()) != 5:
            problems.append(
                f"spec.schedule: found {cron!r} with {len(cron.split())} fields; expected {FIELDS}, e.g. 0 6 * * *"
            )
        else:
            try:
                CronSim(cron, datetime.now(UTC))
            except CronSimError as error:
                problems.append(f"spec.schedule: found {cron!r}: {error}; expected {FIELDS}, e.g. 0 6 * * *")
        try:
            found = ZoneInfo(zone)
        except (KeyError, ValueError, OSError):  # unknown; a path out of the data; a folder of it, such as America
            problems.append(f"spec.timeZone: found {zone!r}; expected an IANA name such as Europe/Zurich or Etc/UTC")
        if problems or found is None:
            raise PermanentError("\n".join(problems))
        return cls(cron, found)

    def newest(self, now: datetime) -> datetime | None:
        """Return the last time up to now; None where there never was one."""
        start = now.astimezone(self.zone).replace(microsecond=0) + timedelta(seconds=1)
        found = next(CronSim(self.cron, start, reverse=True), None)
        if found is None:
            return None
        for later in CronSim(self.cron, found):  # backwards from an hour that comes twice, its first half is missed
            if later.astimezone(UTC) > now:
                break
            found = later
        return found.astimezone(UTC)

    def following(self, now: datetime) -> datetime | None:
        """Return the first time after now; None where there never is one."""
        start = (self.newest(now) or now).astimezone(self.zone)
        moments = (tick.astimezone(UTC) for tick in CronSim(self.cron, start))
        return next((moment for moment in moments if moment > now), None)
