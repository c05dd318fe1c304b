"""Units of measure by UCUM codes: what a unit is in base units, so that `1 g` can be compared with `1000 mg`.

Hides the grammar (terms, exponents, prefixes, annotations) and a table of the units that medicine and imaging use.
Exact: factors are fractions. Special units other than temperatures, which have no factor, are refused. Pure.
Source: The Unified Code for Units of Measure, 2.1.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from math import inf, isfinite

from imaging.errors import AppError, Category

SYSTEM = "http://unitsofmeasure.org"
MOST_CHARACTERS = 100
MAX_EXPONENT = 30
_BASE = ("m", "s", "g", "rad", "K", "C", "cd")


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit as factor times base units, and what has to be added before, which only temperatures have.

    dimension   its base units with exponents, such as `g.m-1.s-2`; arbitrary units are dimensions of their own
    """

    factor: Fraction
    dimension: str
    offset: Fraction = Fraction(0)

    def canonical(self, value: Decimal | float | str) -> Fraction:
        """Return a value in base units."""
        return (Fraction(str(value)) + self.offset) * self.factor

    def measured(self, value: Decimal | float | str) -> float:
        """Return a value in base units as a double, infinite beyond what one can hold."""
        if not isfinite(float(value)):
            return float(value)
        exact = self.canonical(value)
        try:
            return float(exact)
        except OverflowError:
            return inf if exact > 0 else -inf


@lru_cache(maxsize=4096)
def parse(code: str) -> Unit:
    """Return the unit of a UCUM code, case-sensitive form. Raises INVALID for one that is not known."""
    if len(code) > MOST_CHARACTERS:
        raise AppError(Category.INVALID, f"a unit has at most {MOST_CHARACTERS} characters", where="unit")
    if code in _TEMPERATURES:
        factor, offset = _TEMPERATURES[code]
        return Unit(factor, "K", offset)
    parser = _Parser(code)
    factor, powers = parser.whole()
    return Unit(factor, _dimension(powers))


class _Parser:
    """Recursive descent: main-term = `/` term | term; term = component {(`.` | `/`) component}."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    def whole(self) -> tuple[Fraction, dict[str, int]]:
        if not self.text:
            raise self.unknown()
        found = self.term(0)
        if self.position != len(self.text):
            raise self.unknown()
        return found

    def term(self, depth: int) -> tuple[Fraction, dict[str, int]]:
        if depth > 5:
            raise self.unknown()
        factor, powers = Fraction(1), dict[str, int]()
        sign = -1 if self.accept("/") else 1
        while True:
            one, part = self.component(depth)
            factor *= one**sign
            for name, power in part.items():
                powers[name] = powers.get(name, 0) + sign * power
            if self.accept("."):
                sign = 1
            elif self.accept("/"):
                sign = -1
            else:
                return factor, powers

    def component(self, depth: int) -> tuple[Fraction, dict[str, int]]:
        if self.accept("("):
            found = self.term(depth + 1)
            if not self.accept(")"):
                raise self.unknown()
            return self.annotated(found)
        if self.text[self.position : self.position + 1] == "{":
            return self.annotated((Fraction(1), {}))
        match = _SIMPLE.match(self.text, self.position)
        if match is None or match["number"] == "0":
            raise self.unknown()
        self.position = match.end()
        if match["number"]:
            return self.annotated((Fraction(match["number"]), {}))
        exponent = int(match["exponent"] or 1)
        if abs(exponent) > MAX_EXPONENT:
            raise self.unknown()
        factor, powers = self.atom(match["atom"])
        return self.annotated((factor**exponent, {name: power * exponent for name, power in powers.items()}))

    def annotated(self, found: tuple[Fraction, dict[str, int]]) -> tuple[Fraction, dict[str, int]]:
        match = _ANNOTATION.match(self.text, self.position)
        self.position = match.end() if match else self.position
        return found

    def atom(self, symbol: str) -> tuple[Fraction, dict[str, int]]:
        if symbol in _TEMPERATURES:
            raise self.unknown()  # has no factor within a term
        found = _known(symbol)
        if found is not None:
            return found
        for length in (2, 1):
            prefix, rest = symbol[:length], symbol[length:]
            if prefix in _PREFIXES and rest in _METRIC:
                inner = _known(rest)
                if inner is not None:
                    return _PREFIXES[prefix] * inner[0], inner[1]
        raise self.unknown()

    def accept(self, sign: str) -> bool:
        is_next = self.text.startswith(sign, self.position)
        self.position += is_next
        return is_next

    def unknown(self) -> AppError:
        return AppError(Category.INVALID, f"{self.text!r} is not a UCUM unit that is known here", where="unit")


@lru_cache(maxsize=1024)
def _known(symbol: str) -> tuple[Fraction, dict[str, int]] | None:
    if symbol in _BASE:
        return Fraction(1), {symbol: 1}
    if symbol in _ARBITRARY:
        return Fraction(1), {symbol: 1}
    if symbol not in _UNITS:
        return None
    factor, code = _UNITS[symbol]
    inner, powers = _Parser(code).whole()
    return _fraction(factor) * inner, powers


def _fraction(text: str) -> Fraction:
    above, _, below = text.partition("/")
    return Fraction(above) / Fraction(below or 1)


def _dimension(powers: Mapping[str, int]) -> str:
    kept = ((name, power) for name, power in sorted(powers.items()) if power)
    return ".".join(name if power == 1 else f"{name}{power}" for name, power in kept) or "1"


# An atom never ends with a digit outside of brackets, except `10*` and `10^`, whose exponent follows.
_SIMPLE = re.compile(
    r"(?P<atom>10[*^]|(?:[A-Za-z%'\"_]*\[[^\[\]{}\s]+\][A-Za-z_]*|[A-Za-z%'\"_]+))(?P<exponent>[+-]?\d+)?|(?P<number>0|[1-9]\d*)"
)
_ANNOTATION = re.compile(r"\{[\x21-\x7a|~]*\}")

_PREFIXES = {
    **{"Y": Fraction(10**24), "Z": Fraction(10**21), "E": Fraction(10**18), "P": Fraction(10**15)},
    **{"T": Fraction(10**12), "G": Fraction(10**9), "M": Fraction(10**6), "k": Fraction(1000), "h": Fraction(100)},
    **{"da": Fraction(10), "d": Fraction(1, 10), "c": Fraction(1, 100), "m": Fraction(1, 1000)},
    **{"u": Fraction(1, 10**6), "n": Fraction(1, 10**9), "p": Fraction(1, 10**12), "f": Fraction(1, 10**15)},
    **{"a": Fraction(1, 10**18), "z": Fraction(1, 10**21), "y": Fraction(1, 10**24)},
}
# Degrees: (factor, what is added before it is applied).
_TEMPERATURES = {
    "Cel": (Fraction(1), Fraction("273.15")),
    "[degF]": (Fraction(5, 9), Fraction("459.67")),
}
# Units of their own: no relation to any other is defined.
_ARBITRARY = frozenset("""
    [iU] [IU] [arb'U] [USP'U] [GPL'U] [MPL'U] [APL'U] [beth'U] [anti'Xa'U] [todd'U] [dye'U] [smgy'U] [bdsk'U] [ka'U]
    [knk'U] [mclg'U] [tb'U] [CCID_50] [TCID_50] [EID_50] [PFU] [FFU] [CFU] [BAU] [AU] [Amb'a'1'U] [D'ag'U] [ELU] [EU]
""".split())  # fmt: skip  # noqa: SIM905
_PI = "3.1415926535897932384626433832795028841971693993751058209749445923"
# Symbol, factor, and the unit that it multiplies. Source: UCUM 2.1, tables 3 to 20.
_TABLE = """
# numbers and amounts
10* 10 1;  10^ 10 1;  [pi] pi 1;  % 1/100 1;  [ppth] 1/1000 1;  [ppm] 1/1000000 1;  [ppb] 1/1000000000 1;  [pptr]
1/1000000000000 1;  mol 602213670000000000000000 1;
# derived units of the SI
sr 1 rad2;  Hz 1 s-1;  N 1000 g.m/s2;  Pa 1 N/m2;  J 1 N.m;  W 1 J/s;  A 1 C/s;  V 1 J/C;  F 1 C/V;  Ohm 1 V/A;  S 1
Ohm-1;  Wb 1 V.s;  T 1 Wb/m2;  H 1 Wb/A;  lm 1 cd.sr;  lx 1 lm/m2;  Bq 1 s-1;  Gy 1 J/kg;  Sv 1 J/kg;  kat 1 mol/s;
# used with the SI
deg pi/360 2.rad;  ' 1/60 deg;  '' 1/60 ';  gon 9/10 deg;  l 1 dm3;  L 1 dm3;  ar 100 m2;  t 1000 kg;  bar 100000
Pa;  u 1.6605402e-24 g;  eV 1.60217733e-19 J;  AU 149597870691 m;  pc 3.085678e16 m;  att 98066.5 Pa;  atm 101325
Pa;
# times
min 60 s;  h 60 min;  d 24 h;  wk 7 d;  a_t 365.24219 d;  a_j 365.25 d;  a_g 365.2425 d;  a 1 a_j;  mo_j 1/12 a_j;
mo 1 mo_j;  mo_s 29.53059 d;  mo_g 1/12 a_g;
# constants
[c] 299792458 m/s;  [h] 6.6260755e-34 J.s;  [k] 1.380658e-23 J/K;  [eps_0] 8.854187817e-12 F/m;  [e] 1.60217733e-19
C;  [m_e] 9.1093897e-28 g;  [m_p] 1.6726231e-24 g;  [G] 6.67259e-11 m3.kg-1.s-2;  [g] 9.80665 m/s2;
# of the older systems
gf 1 g.[g];  [lbf_av] 1 [lb_av].[g];  Ky 1 cm-1;  Gal 1 cm/s2;  dyn 1 g.cm/s2;  erg 1 dyn.cm;  P 1 dyn.s/cm2;  Bi 10
A;  St 1 cm2/s;  Mx 1e-8 Wb;  G 1e-4 T;  Oe 250/pi A/m;  Gb 1 Oe.cm;  sb 1 cd/cm2;  Lmb 1/pi cd/cm2;  ph 1e-4 lx;
Ci 37000000000 Bq;  R 2.58e-4 C/kg;  RAD 100 erg/g;  REM 1 RAD;  cal 4.184 J;  [Cal] 1 kcal;  cal_th 4.184 J;
cal_IT 4.1868 J;  cal_m 4.19002 J;  [Btu] 1055.05585262 J;  [HP] 550 [ft_i].[lbf_av]/s;
# lengths and areas
[in_i] 2.54 cm;  [ft_i] 12 [in_i];  [yd_i] 3 [ft_i];  [mi_i] 5280 [ft_i];  [nmi_i] 1852 m;  [kn_i] 1 [nmi_i]/h;
[sin_i] 1 [in_i]2;  [sft_i] 1 [ft_i]2;  [cin_i] 1 [in_i]3;  [cft_i] 1 [ft_i]3;  [mil_i] 1/1000 [in_i];  Ao 1/10 nm;
[hd_i] 4 [in_i];  [Ch] 1/3 mm;  [diop] 1 /m;  b 100 fm2;  [lne] 1/12 [in_i];
# volumes
[gal_us] 231 [in_i]3;  [qt_us] 1/4 [gal_us];  [pt_us] 1/2 [qt_us];  [cup_us] 16 [tbs_us];  [foz_us] 1/16 [pt_us];
[tbs_us] 1/2 [foz_us];  [tsp_us] 1/3 [tbs_us];  [fdr_us] 1/8 [foz_us];  [foz_m] 30 mL;  [cup_m] 240 mL;  [tbs_m] 15
mL;  [tsp_m] 5 mL;  [drp] 1/20 ml;  [gal_br] 4.54609 l;  [pt_br] 1/8 [gal_br];  [foz_br] 1/20 [pt_br];  st 1 m3;
# masses
[gr] 64.79891 mg;  [lb_av] 7000 [gr];  [oz_av] 1/16 [lb_av];  [dr_av] 1/16 [oz_av];  [stone_av] 14 [lb_av];
[lcwt_av] 112 [lb_av];  [scwt_av] 100 [lb_av];  [ston_av] 20 [scwt_av];  [oz_tr] 20 [pwt_tr];  [pwt_tr] 24 [gr];
[lb_tr] 12 [oz_tr];  [oz_ap] 480 [gr];  [dr_ap] 60 [gr];  [oz_m] 28 g;  [car_m] 1/5 g;
# pressures
m[Hg] 133.3220 kPa;  m[H2O] 9.80665 kPa;  [in_i'Hg] 0.0254 m[Hg];  [in_i'H2O] 0.0254 m[H2O];  [psi] 1
[lbf_av]/[sin_i];  [PRU] 1 mm[Hg].s/ml;  [wood'U] 1 mm[Hg].min/L;
# clinical
eq 1 mol;  osm 1 mol;  g% 1 g/dl;  U 1 umol/min;  [S] 1 10*-13.s;  [HPF] 1 1;  [LPF] 100 1;  [MET] 3.5 mL/min/kg;
[pH] 1 1;  bit 1 1;  By 8 bit;  Bd 1 /s;  [smoot] 67 [in_i];  circ 2 [pi].rad;  sph 4 [pi].sr;  tex 1 g/km;  [den]
1/9 g/km;  [acr_us] 4046.872609874252 m2;
"""
_UNITS: Mapping[str, tuple[str, str]] = {
    symbol: (factor.replace("pi", _PI), unit)
    for entry in re.sub("#.*", "", _TABLE).split(";")
    if entry.strip()
    for symbol, factor, unit in [entry.split()]
}
# Units that take prefixes.
_METRIC = frozenset("""
    m s g rad K C cd mol sr Hz N Pa J W A V F Ohm S Wb T H lm lx Bq Gy Sv kat l L ar t bar u eV pc gf dyn erg P Bi St Mx
    G Oe Gb sb Lmb ph Ci R RAD REM cal cal_th cal_IT cal_m [Cal] m[Hg] m[H2O] eq osm g% U bit By Bd tex b st [iU] [IU]
    [c] [h] [k] [eps_0] [e] [m_e] [m_p] [G] [g]
""".split())  # fmt: skip  # noqa: SIM905
