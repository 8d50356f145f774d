"""How dates and times are written, as rules for one cell."""

from __future__ import annotations

import re

NAMES = (
    "jan january januar janvier janv enero ene gennaio gen januari janeiro jän jänner января январь янв stycznia ocak",
    "feb february februar février févr fév febrero febbraio februari fevereiro fev февраля февраль фев lutego şubat",
    "mar march märz mär mrz mars marzo maart mrt março marts марта март мар marca mart",
    "apr april avril avr abril abr aprile апреля апрель апр kwietnia nisan",
    "may mai mayo maggio mag mei maio maj мая май maja mayıs",
    "jun june juni juin junio giugno giu junho июня июнь июн czerwca haziran",
    "jul july juli juillet juil julio luglio lug julho июля июль июл lipca temmuz",
    "aug august août aou agosto ago augustus augusti августа август авг sierpnia ağustos",
    "sep sept september septembre septiembre settembre set setembro сентября сентябрь сен września eylül",
    "oct october oktober okt octobre octubre ottobre ott outubro out октября октябрь окт października ekim",
    "nov november novembre noviembre novembro ноября ноябрь ноя listopada kasım",
    "dec december dezember dez décembre déc diciembre dic dicembre dezembro декабря декабрь дек grudnia aralık",
)
MONTHS = {name: i for i, names in enumerate(NAMES, 1) for name in names.split()}
ZONES = dict(Z=0, UTC=0, GMT=0, WET=0, CET=1, CEST=2, EET=2, EEST=3, MSK=3, JST=9, KST=9, AEST=10)
ZONES |= dict(EST=-5, EDT=-4, CST=-6, CDT=-5, MST=-7, MDT=-6, PST=-8, PDT=-7)  # hours before UTC
CLOCK = r"(\d{1,3}):(\d\d)(?::(\d\d)(?:[.,](\d+))?)?\s*(?:([apAP])\.?[mM]\.?)?"
ZONE = rf"\s*(?:\(?((?:UTC|GMT)?[+-]\d\d:?(?:\d\d)?|{'|'.join(ZONES)})\)?)?"
TIME = rf"(?:(?:\s*[Tt,:]\s*|\s+){CLOCK}{ZONE})?"
SPLIT = r"\s*[-/. ,]\s*"
WEEKDAY = r"(?:[^\W\d_]{2,10}\.?,?\s+)?"
NAME = r"([^\W\d_]{3,12})"
TRIPLE = re.compile(rf"{WEEKDAY}(\d{{1,4}})\s*([-/.])\s*(\d{{1,2}})\s*\2\s*(\d{{1,4}})\.?{TIME}{ZONE}")
DAY_NAME = re.compile(
    rf"{WEEKDAY}(\d{{1,2}})(?:st|nd|rd|th|\.)?(?:{SPLIT}|)(?:de )?{NAME}"
    rf"\.?(?:{SPLIT}|)(?:de )?'?(\d{{4}}|\d\d){TIME}{ZONE}"
)
NAME_DAY = re.compile(rf"{WEEKDAY}{NAME}\.?{SPLIT}(\d{{1,2}})(?:st|nd|rd|th)?(?:{SPLIT})(\d{{4}}){TIME}{ZONE}")
NAME_DAY_TIME = re.compile(rf"{WEEKDAY}{NAME}\s+(\d{{1,2}})\s+{CLOCK}{ZONE}\s+(\d{{4}})")  # as C's ctime writes it
YEAR_NAME = re.compile(rf"(\d{{4}}){SPLIT}{NAME}\.?{SPLIT}(\d{{1,2}}){TIME}{ZONE}")
KANJI = re.compile(rf"(\d{{4}})\s*[年년]\s*(\d{{1,2}})\s*[月월]\s*(\d{{1,2}})\s*[日일]\s*(?:{CLOCK})?")
COMPACT = re.compile(r"([12]\d{3})(\d\d)(?:(\d\d)(?:[T ]?(\d\d)(\d\d)(\d\d)?)?)?Z?")
SHORT = re.compile(r"(\d\d)(\d\d)(\d\d)|(\d{1,2})\s*[-/.]\s*(\d\d)")
SEASON = re.compile(r"(\d{4})\s*[-/–]\s*(\d\d)")
MONTH = re.compile(r"(?:(\d{4})\s*[-/.年년M]\s*(\d{1,2})\s*[月월]?|(\d{1,2})\s*[-/.]\s*(\d{4}))")
NAMED_MONTH = re.compile(rf"(?:{NAME}\.?(?:{SPLIT})'?(\d{{4}})|(\d{{4}}){SPLIT}{NAME}\.?|{NAME}\.?(?:\s*'|-)(\d\d))")
QUARTER = re.compile(
    r"(?:(\d{4})\s*[-/. ]?\s*[QqT]([1-4])|[QqT]([1-4])\s*[-/. ]?\s*(\d{4})|([1-4])[Qq]\s*'?(\d{4}|\d\d)"
    r"|[Qq]([1-4])\s*(?:'|[-/. ]'?)\s*(\d\d))"
)
HALF = re.compile(r"(?:(\d{4})\s*[-/ ]?\s*[HhS]([12])|[HhS]([12])\s*[-/ ]?\s*(\d{4})|([12])[Hh]\s*'?(\d{4}|\d\d))")
WEEK = re.compile(r"(?:(\d{4})[- ]?[WwK]{1,2}(\d\d?)(?:-?([1-7]))?|[WwK]{1,2}\s?(\d\d?)\s*[-/ ]\s*(\d{4}))")
ALONE = re.compile(CLOCK)
DAYS_CLOCK = re.compile(rf"([+-]?\d+)\s*days?,?\s*(?:\+?{CLOCK})?")  # as Python and pandas write a span of time
HOUR = re.compile(r"(\d{1,2})(?:[hH](\d\d)|\s*([apAP])\.?[mM]\.?)")  # 23h35, 11 pm
SPAN = re.compile(
    r"(?:P(?=T|\d+D))?(?:(\d+)\s*d(?:ays?)?)?,?\s*T?(?:(\d+)\s*h(?:rs?|ours?)?)?,?\s*"
    r"(?:(\d+)\s*m(?:ins?|inutes?)?)?,?\s*(?:(\d+(?:\.\d+)?)\s*s(?:ecs?|econds?)?)?",
    re.IGNORECASE,
)
