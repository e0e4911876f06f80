"""What the word before a number says that it is: a telephone's ("tel.", "Rufnummer"), or an article's ("order no.")."""

from __future__ import annotations

from typing import Final

__all__ = ["CHARS_BEFORE", "calls_article", "calls_telephone"]

CHARS_BEFORE: Final = 40
"""Looked at for words before a number."""

_TELEPHONES: Final = (
    "tel", "telephone", "telephones", "telefon", "telefono", "teléfono", "telefone", "téléphone", "tél", "telef", "tlf",
    "phone", "phones", "ph", "cell", "cellphone", "mobile", "mobil", "mob", "handy", "ruf", "fax", "whatsapp",
    "whats app", "viber", "wechat", "hotline", "call", "contact", "kontakt", "contacto", "reach me", "reach us",
    "reach me at", "reach us at", "sms", "gsm",
    "телефон", "тел", "моб",
    "电话", "手机", "手提", "座机", "热线", "传真", "微信", "電話", "手機", "携帯",
    "전화", "هاتف", "جوال", "واتساب", "फ़ोन", "फोन",
)  # fmt: skip
_TELEPHONES_WITH: Final = (
    "is", "no", "nr", "num", "number", "numbers", "nummer", "nummern", "me", "me at", "me on", "us", "us at", "us on",
    "#", "号码", "号", "番号", "番號", "是", "为", "為",
)  # fmt: skip
"""What may stand between such a word and the number."""
_ARTICLES: Final = (
    "isbn", "issn", "ean", "upc", "gtin", "asin", "sku", "mpn", "item", "article", "artikel", "art", "model", "part",
    "ref", "reference", "order", "serial", "batch", "lot", "product", "code", "id", "#", "№",
    "p/n", "pn", "s/n", "sn", "oem", "oe", "catalog", "catalogue",
    # German
    "bestell", "best.-nr", "best-nr", "serien", "serie", "teile", "teil", "ersatzteil", "modell", "produkt", "auftrag",
    "auftrags", "katalog", "referenz",
    # French
    "réf", "référence", "commande", "série", "modèle", "pièce", "produit",
    # Spanish and Italian
    "referencia", "pedido", "artículo", "articulo", "modelo", "pieza", "código", "codigo", "producto", "lote",
    "articolo", "codice", "cod", "ordine", "modello", "ricambio", "rif", "riferimento", "prodotto", "lotto",
    # Chinese and Japanese
    "货号", "条码", "条形码", "编号", "型号", "订单", "订单号", "单号", "编码",
    "型番", "品番", "商品", "注文", "製品", "製造", "部品", "管理", "シリアル", "コード", "モデル",
)  # fmt: skip
_ARTICLES_WITH: Final = (
    "is", "no", "nr", "num", "number", "nummer", "nummern", "numero", "número", "numéro", " n", "n°", "10", "13",
    "是", "为", "番号", "番", "ナンバー",
)  # fmt: skip
_BETWEEN = " .:=-_('\""
_FIRST_UNBOUND: Final = "\u0590"
"""Scripts before this one (Latin, Greek, Cyrillic, Armenian) part words: a hotel is no telephone. Arabic writes "and"
onto a word, Chinese has no spaces."""


def calls_telephone(before: str) -> bool:
    """Whether a folded text ends with what makes the number after it a telephone's."""
    return _follows(_TELEPHONES, _TELEPHONES_WITH, before)


def calls_article(before: str) -> bool:
    """Whether a folded text ends with what makes the number after it something else's."""
    return _follows(_ARTICLES, _ARTICLES_WITH, before)


def _follows(words: tuple[str, ...], between: tuple[str, ...], before: str) -> bool:
    """Whether ``before`` ends with one of ``words``, perhaps with two of those that stand between."""
    before = before.lower().rstrip(_BETWEEN)
    for _ in range(2):
        if _ends(before, words):
            return True
        if not before.endswith(between):
            return False
        before = before.removesuffix(max(filter(before.endswith, between), key=len)).rstrip(_BETWEEN)
    return _ends(before, words)


def _ends(text: str, words: tuple[str, ...]) -> bool:
    return text.endswith(words) and any(
        not (_bound(word[0]) and _bound(text[-len(word) - 1 : -len(word)])) for word in filter(text.endswith, words)
    )


def _bound(letter: str) -> bool:
    return letter.isalpha() and letter < _FIRST_UNBOUND
