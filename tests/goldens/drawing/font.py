"""Makes fallback.ttc: two faces with one letter each that the embedded font lacks, a triangle for U+732B in the second of them.

python3 tests/goldens/drawing/font.py, with fonttools installed.
"""

from pathlib import Path

from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTCollection


def drawn(points):
    pen = TTGlyphPen(None)
    pen.moveTo(points[0])
    for point in points[1:]:
        pen.lineTo(point)
    pen.closePath()
    return pen.glyph()


def face(family, letter, points):
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder([".notdef", "letter"])
    font.setupCharacterMap({letter: "letter"})
    font.setupGlyf({".notdef": drawn([(100, 0), (100, 700), (500, 700), (500, 0)]), "letter": drawn(points)})
    font.setupHorizontalMetrics({".notdef": (600, 100), "letter": (1000, 100)})
    # Other measures than the embedded font's, as those of large collections are.
    font.setupHorizontalHeader(ascent=1160, descent=-288)
    font.setupNameTable({"familyName": family, "styleName": "Regular", "psName": family.replace(" ", "")})
    font.setupOS2(sTypoAscender=1160, sTypoDescender=-288, usWinAscent=1160, usWinDescent=288)
    font.setupPost()
    return font.font


collection = TTCollection()
collection.fonts = [
    face("Palisade Test A", 0x72AC, [(100, 0), (100, 800), (900, 800), (900, 0)]),
    face("Palisade Test B", 0x732B, [(100, 0), (500, 800), (900, 0)]),
]
collection.save(Path(__file__).with_name("fallback.ttc"))
