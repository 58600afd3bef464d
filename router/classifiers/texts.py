"""What is read of a text: its words, of a long text the ends and the first and last sentence, and its
language.

`language_of` goes by script and function words. It tells requests in another language from those in the
language of the examples. It is no language model, and takes 0.1 ms for a long text. Only the instruction
counts: in "Translate into German: ..." it is English, whatever the passage behind it is. What stands
between quotation marks does not count.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

HEAD, TAIL = 600, 300  # characters of a long text that are read
SENTENCE_WORDS = 14  # that are read of a sentence
LEAST_WORDS = 2  # a sentence of fewer takes its neighbour with it
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?[+#]*")
_CUT = re.compile(r"(?<=[.!?:;>])\s+|\s[-–—=]+>?\s|(?<=\?)")
_FRAME = " \"'`-–=>"
_OPTION = re.compile(r"\s*[\[(]?(?:[A-Ea-e]|[1-5]|[ivx]{1,3})[\]).:](?:\s|$)")


def whole_first_last(text: str) -> tuple[str, str, str]:
    """The ends of the whole text, its first sentence and its last. A single sentence is all three.

    Lines with the options of a multiple-choice question are passed over: they say little of what is asked.
    """
    whole = cut_middle(text, HEAD, TAIL)
    lines = whole.splitlines()
    found = _pieces([line for line in lines if not _OPTION.match(line)]) or _pieces(lines)
    if not found:
        return whole, whole, whole
    return whole, " ".join(_first(found)[:SENTENCE_WORDS]), " ".join(_last(found)[-SENTENCE_WORDS:])


def _pieces(lines: Sequence[str]) -> list[str]:
    stripped = (piece.strip(_FRAME) for line in lines for piece in _CUT.split(line))
    return [piece for piece in stripped if any(map(str.isalnum, piece))]


def _first(pieces: Sequence[str]) -> list[str]:
    found: list[str] = []
    for piece in pieces:
        found += piece.split()
        if len(found) >= LEAST_WORDS:
            break
    return found


def _last(pieces: Sequence[str]) -> list[str]:
    found: list[str] = []
    for piece in reversed(pieces):
        found = piece.split() + found
        if len(found) >= LEAST_WORDS:
            break
    return found


def cut_middle(text: str, head: int, tail: int) -> str:
    """The first `head` and last `tail` characters: an instruction stands before or after what it is about."""
    if len(text) <= head + tail:
        return text
    return f"{text[:head]} … {text[-tail:]}"


def words(text: str) -> list[str]:
    """Words of `text`, case folded; `C++`, `c#` and `don't` stay whole."""
    return WORD.findall(text.casefold().replace("’", "'"))


# -- the language of a text

ENGLISH = "en"
OTHER = "xx"  # an unknown language of Latin letters
SHARE = 0.1  # of the examples that a language needs to be one of theirs
LEAST = 1.5  # function words that a language needs where the text is not short
LEAST_SHORT, FEW_WORDS = 1.0, 7  # the same in a text of no more words
ACCENTED = 0.5  # of a function word that a word with letters beyond ASCII counts
DENSE = 0.25  # share of letters beyond Latin from which their script decides; a character counts as three
_QUOTED = re.compile(r"\"[^\"]{1,400}\"|“[^”]{1,400}”|„[^“”\"]{1,400}[“”\"]|«[^»]{1,400}»|`[^`]{1,400}`")
FIRST_WORDS = 3  # a first sentence of fewer takes the next with it, save before a colon
_SENTENCE = re.compile(r"(?<=[.!?:;])\s+|(?<=[。！？：；])|\n+")
_COLON = (":", "：")
_ALPHABETS = {  # first word of the Unicode name of a letter
    "CJK": "zh",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "HANGUL": "ko",
    "CYRILLIC": "ru",
    "GREEK": "el",
    "ARABIC": "ar",
    "HEBREW": "he",
    "DEVANAGARI": "hi",
    "BENGALI": "bn",
    "TAMIL": "ta",
    "TELUGU": "te",
    "THAI": "th",
    "GEORGIAN": "ka",
    "ARMENIAN": "hy",
}
_FUNCTION_WORDS = {
    ENGLISH: (
        "the a an of to and is are was were be been in on at by for from with without into about this that "
        "these those it its i i'm my me you your we our us they their he she his her what what's which who "
        "why how when where do does did don't doesn't can can't could should would will won't may must have "
        "has had not no or if but so as than there any all please out up over after before between "
        "summarize summarise write give make translate explain find get use using one two i've isn't"
    ),
    "de": (
        "der das den dem des ein eine einen einem einer eines und oder aber nicht kein keine ist sind waren "
        "wird werden wurde habe haben hatte kann können könnte muss müssen soll sollte darf dürfen ich du "
        "er wir ihr sie mich mir dich dir uns mein meine meinen meinem meiner unser unsere unserem ihre "
        "ihren sein seine dein deine wie wer wo wann warum wieso welche welcher welches welchem welchen "
        "wohin mit von vom zu zum zur auf aus bei beim nach für über unter zwischen ohne gegen bis seit "
        "durch vor wenn dass weil ob als auch noch schon nur sehr mehr bitte diese dieser dieses diesen "
        "sich es im ins am um gibt man hallo übersetze schreib schreibe fasse fass erkläre erklär mach "
        "nenne formuliere gib zeig daraus davon dazu hier heute was bin hat pro diesem jeder jede jedes "
        "jeden alle allen worum woran womit wofür wovon geht wurden hätte hätten wäre würde doch dann denn "
        "damit deshalb habt seid eure eurer ihnen ihm ihn"
    ),
    "fr": (
        "le la les l' un une des du de et ou où est sont était être ai avons avez ont je j'ai tu il elle "
        "nous vous ils elles mon ma mes ton ta tes notre nos votre vos leur leurs ce cet cette ces qui que "
        "quel quelle quels quelles quoi pourquoi combien quand dans sur sous avec sans pour par chez vers "
        "entre depuis pas ne plus aux au en y se si mais donc puis peut peux puis-je faire fait dois doit "
        "veux est-ce c'est qu'est-ce n'est d'un d'une s'il plaît bonjour salut moi toi très aussi comme "
        "traduis traduisez traduire résume résumez rédige écris explique corrige donne trouve mets dis"
    ),
    "es": (
        "el la los las un una unos unas de del al y o u es son era está están estoy ser estar hay tengo "
        "tiene tienen yo tú él ella nosotros ustedes mi mis tu tus su sus nuestro nuestra que qué quién "
        "cuál cuáles cómo cuándo dónde cuánto cuánta cuántos por para con sin sobre entre desde hasta en se "
        "lo le les nos no me si sí pero porque muy más también este esta estos estas esto ese esa eso puedo "
        "puede hacer quiero quiere alguna algún necesito hola favor hazme dame traduce traduzca resume "
        "escribe redacta explica corrige pon haz dime ya como cada"
    ),
    "it": (
        "il lo la gli le un uno una di del della dello dei delle degli da dal dalla nel nella al alla con "
        "su sul sulla per tra fra che chi cosa quale quali quanto quando dove perché è sono era ho hai ha "
        "abbiamo io tu lui lei noi voi loro mio mia miei suo sua nostro e ed o ma non più anche come questo "
        "questa questi queste ciao mi ti si ci vi puoi posso deve fare traduci scrivi riassumi spiega dammi"
    ),
    "pt": (
        "o os as um uma uns umas de do da dos das no na nos nas ao à e ou é são era está estou ser ter "
        "tenho tem eu tu você ele ela nós meu minha meus seu sua nosso que quem qual quais quanto quando "
        "onde por para com sem sobre entre até em se não mais também muito este esta isto esse essa como "
        "posso pode fazer quero preciso traduza escreva resuma explique olá"
    ),
    "nl": (
        "het een de en of maar niet geen zijn was wordt worden heb heeft hebben kan kunnen moet moeten mag "
        "ik jij je hij zij wij jullie mijn jouw onze ons wie wat waar wanneer waarom hoe welke met van voor "
        "naar bij op uit tussen zonder sinds als dat dit deze die ook nog graag hallo ben er te om aan "
        "vertaal schrijf geef"
    ),
    "sv": (
        "och att det den ett en är var har hade kan ska skall måste jag du han hon vi ni mig min mitt mina "
        "din vår inte på av för med till från om som hur vad vem när varför vilken vilket hej eller men "
        "också mycket efter mellan utan"
    ),
    "da": (
        "og at det den et en er var har havde kan skal må jeg du han hun vi mig min mit mine din vores ikke "
        "på af for med til fra om som hvordan hva hvad hvem hvor når hvorfor hvilken hei hej eller men også "
        "meget efter etter mellem mellom uten uden ei noe noget"
    ),
    "pl": (
        "i w z na nie się jest są był była mam ma może jak kto kiedy gdzie dlaczego który która które czy "
        "to ta te mój moja moje dla po od przez przy bez ale lub oraz że już tylko proszę cześć mi mnie "
        "jestem o"
    ),
    "cs": (
        "a v z na ne se je jsou byl byla mám může jak kdo kdy kde proč který která které můj moje pro po od "
        "při bez ale nebo že už jen prosím ahoj mi mě jsem si k s"
    ),
    "ro": (
        "și în la de pe cu nu este sunt era am are au eu tu el ea noi voi meu mea mei ce cine cum când unde "
        "care cât pentru din prin fără sau dar mai foarte un o unei unui să se îmi îți salut"
    ),
    "hu": (
        "a az és hogy nem van vannak volt egy mi ki mit hol mikor miért hogyan melyik milyen én te ő meg de "
        "vagy is csak már még nekem kell lehet szia ez ezt"
    ),
    "tr": (
        "ve bir bu şu o ne nasıl neden nerede kim hangi kaç mi mı mu mü için ile değil var yok ben sen biz "
        "siz benim senin çok daha ama veya gibi kadar sonra önce bana lütfen merhaba"
    ),
    "fi": (
        "ja on ei se että mitä miten miksi missä milloin kuka mikä minä sinä hän me te he minun olen ovat "
        "oli voi voiko pitää kanssa mutta tai kuin myös hei"
    ),
    "id": (
        "yang dan di ke dari untuk dengan tidak ini itu saya aku kamu anda dia kami apa bagaimana mengapa "
        "kapan siapa berapa adalah bisa harus atau tapi juga sudah belum pada tolong buatkan"
    ),
    "vi": (
        "là và của có không cho tôi bạn một này được trong với những các người gì nào khi làm sao như thế ở "
        "đi về đã sẽ hãy"
    ),
}
_HALF_ENGLISH = "in die an was war so am will hat man on me no a as also i do or has he had come"
_WEAK = (  # short words of many languages that names and abbreviations of English texts have, too
    "de la le du en al im sin ta mi un el se si ni ne na te ti per con pro plus san van los las des son den "
    "del von om er et il lo ma da di ai es pa tu su una und oder ist dos mal bis zu min po ja met op"
)
SHARED, WEAK = 0.4, 0.6  # what such words count, where others count 1


def _weights() -> dict[str, dict[str, float]]:
    """What each function word counts for each language that has it."""
    found: dict[str, dict[str, float]] = {}
    for language, text in _FUNCTION_WORDS.items():
        for word in text.split():
            if len(word) > 1 or not word.isascii() or language == ENGLISH:
                found.setdefault(word, {})[language] = 1.0
    half, weak = frozenset(_HALF_ENGLISH.split()), frozenset(_WEAK.split())
    for word, of in found.items():
        if word in half:
            of.setdefault(ENGLISH, 1.0)
        if len(of) > 1 and ENGLISH in of and word not in half:
            found[word] = {ENGLISH: 1.0}
        elif word in half:
            found[word] = dict.fromkeys(of, SHARED)
        elif word in weak:
            found[word] = dict.fromkeys(of, WEAK)
    return found


_WEIGHTS: Mapping[str, Mapping[str, float]] = _weights()


def language_of(text: str) -> str:
    """The language of what is asked, as `en`, `de`, `zh`; empty where nothing tells.

    The first sentence decides; where it says nothing the whole does. A few English words at the end, such as
    "in English, please", decide where the first sentence does not end with a colon.
    """
    seen = cut_middle(text, HEAD, TAIL)
    bare = _QUOTED.sub(" ", seen)
    if not any(map(str.isalpha, bare)):
        bare = seen
    sentences = [s for s in _SENTENCE.split(bare) if any(map(str.isalpha, s))]
    if not sentences:
        return ""
    first = sentences[0]
    for sentence in sentences[1:]:
        if first.rstrip().endswith(_COLON) or len(first.split()) >= FIRST_WORDS or not first.isascii():
            break
        first = f"{first} {sentence}"
    language = _by_words(first)
    last = sentences[-1]
    if language not in ("", ENGLISH) and last not in first and not first.rstrip().endswith(_COLON):
        return ENGLISH if len(last.split()) <= FEW_WORDS and _by_words(last) == ENGLISH else language
    return language or _by_words(bare)


def _by_words(text: str) -> str:
    if language := _by_letters(text):
        return language
    tokens = words(text)
    counts: dict[str, float] = dict.fromkeys(_FUNCTION_WORDS, 0.0)
    accented = sum(map(text.count, "¿¡"))
    for token in tokens:
        of = _WEIGHTS.get(token)
        if of is not None:
            for language, weight in of.items():
                counts[language] += weight
        elif not token.isascii():
            accented += 1
    english = counts.pop(ENGLISH)
    language = max(counts, key=counts.__getitem__)
    score = counts[language] + ACCENTED * accented
    if score > english and score >= (LEAST_SHORT if len(tokens) <= FEW_WORDS else LEAST):
        return language if counts[language] else OTHER
    return ENGLISH if english else ""


def _by_letters(text: str) -> str:
    """The language of a script beyond Latin that has a good share of the letters."""
    if text.isascii():
        return ""
    latin, others = 0, Counter[str]()
    for letter in filter(str.isalpha, text):
        if letter.isascii():
            latin += 1
        elif language := _ALPHABETS.get(unicodedata.name(letter, "").split(" ")[0].split("-")[0]):
            others[language] += 3
        else:
            latin += 1
    total = latin + others.total()
    if not total or others.total() / total < DENSE:
        return ""
    return "ja" if others["ja"] else others.most_common(1)[0][0]


def languages_of(texts: Iterable[str]) -> frozenset[str]:
    """The languages that have a good share of these texts."""
    counts = Counter(language for text in texts if (language := language_of(text)))
    return frozenset(one for one, count in counts.items() if count >= SHARE * counts.total())


def is_foreign(text: str, known: Collection[str]) -> bool:
    """Whether what is asked is in a language that is not one of these."""
    language = language_of(text)
    return bool(language) and bool(known) and language not in known
