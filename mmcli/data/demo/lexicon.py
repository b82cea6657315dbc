"""Word pairs (opposites, plurals, measure words, translations) and ordered lists (days, months, seasons, numbers)."""

from mmcli.data.demo.world import ANIMALS, COLOURS, MONTHS, OBJECTS, SEASONS, Term, terms

OPPOSITES: tuple[tuple[Term, Term], ...] = tuple(
    (terms(left)[0], terms(right)[0])
    for left, right in (
        entry.split(":")
        for entry in (
            "hot/热:cold/冷",
            "big/大:small/小",
            "tall/高:short/矮",
            "fast/快:slow/慢",
            "new/新:old/旧",
            "day/白天:night/黑夜",
            "open/打开:closed/关闭",
            "full/满:empty/空",
            "wet/湿:dry/干",
            "clean/干净:dirty/肮脏",
            "happy/快乐:sad/悲伤",
            "strong/强壮:weak/虚弱",
            "bright/明亮:dark/黑暗",
            "heavy/重:light/轻",
            "soft/软:hard/硬",
            "early/早:late/晚",
            "near/近:far/远",
            "left/左:right/右",
            "front/前:back/后",
            "inside/里面:outside/外面",
            "buy/买:sell/卖",
            "easy/容易:difficult/困难",
        )
    )
)

_PLURALS = """
cat:cats dog:dogs bird:birds lamp:lamps tree:trees river:rivers garden:gardens box:boxes fox:foxes
dish:dishes bus:buses glass:glasses baby:babies city:cities story:stories leaf:leaves wolf:wolves
knife:knives child:children man:men woman:women mouse:mice foot:feet
"""
PLURALS: tuple[tuple[str, str], ...] = tuple(
    (singular, plural) for singular, plural in (entry.split(":") for entry in _PLURALS.split())
)

# Noun and measure word: 一本书.
MEASURES: tuple[tuple[str, str], ...] = tuple(
    (noun, measure)
    for measure, nouns in (
        ("本", "书 杂志 词典 日记"),
        ("只", "猫 兔子 鸭子 老鼠"),
        ("条", "鱼 蛇 河 路"),
        ("张", "桌子 床 纸 地图"),
        ("把", "椅子 雨伞 尺子 钥匙"),
        ("辆", "汽车 自行车 卡车"),
        ("棵", "树 白菜 柳树"),
        ("双", "鞋 袜子 筷子"),
    )
    for noun in nouns.split()
)

DAYS = terms(
    "Monday/星期一, Tuesday/星期二, Wednesday/星期三, Thursday/星期四, Friday/星期五, Saturday/星期六, Sunday/星期日"
)
NUMBERS = tuple(Term(str(n), str(n)) for n in range(13))

# Name -> (items, whether the list begins again after its end).
ORDERS: dict[str, tuple[tuple[Term, ...], bool]] = {
    "day": (DAYS, True),
    "month": (MONTHS, True),
    "season": (SEASONS, True),
    "number": (NUMBERS, False),
}

_EXTRA = terms(
    "sun/太阳, moon/月亮, star/星星, river/河流, mountain/高山, tree/树, flower/花, house/房子, door/门, window/窗户, "
    "table/桌子, chair/椅子, book/书, water/水, milk/牛奶, tea/茶, egg/鸡蛋, shoe/鞋, hat/帽子, friend/朋友, "
    "school/学校, rain/雨, snow/雪, thank you/谢谢, hello/你好"
)
_NOUNS = tuple(e.name for e in ANIMALS + OBJECTS)
# Every English and every Chinese word occurs once.
TRANSLATIONS: tuple[Term, ...] = tuple(
    {t.zh: t for t in {t.en: t for t in _NOUNS + COLOURS + _EXTRA}.values()}.values()
)
