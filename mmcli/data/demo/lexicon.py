"""Word pairs (opposites, plurals, measure words, translations) and ordered lists (days, months, letters, numbers)."""

from mmcli.data.demo.world import ANIMALS, COLOURS, FOODS, HOBBIES, JOBS, MONTHS, OBJECTS, PLANTS, SEASONS, Term, terms

OPPOSITES: tuple[tuple[Term, Term], ...] = tuple(
    (terms(left)[0], terms(right)[0])
    for left, right in (
        entry.split(":")
        for entry in (
            "hot/热:cold/冷",
            "big/大:small/小",
            "tall/高:short/矮",
            "long/长:brief/短",
            "fast/快:slow/慢",
            "new/新:old/旧",
            "day/白天:night/黑夜",
            "open/打开:closed/关闭",
            "full/满:empty/空",
            "wet/湿:dry/干",
            "clean/干净:dirty/肮脏",
            "happy/快乐:sad/悲伤",
            "strong/强壮:weak/虚弱",
            "rich/富有:poor/贫穷",
            "loud/吵闹:quiet/安静",
            "bright/明亮:dark/黑暗",
            "thick/厚:thin/薄",
            "heavy/重:light/轻",
            "soft/软:hard/硬",
            "early/早:late/晚",
            "near/近:far/远",
            "left/左:right/右",
            "front/前:back/后",
            "inside/里面:outside/外面",
            "first/最先:last/最后",
            "begin/开始:finish/结束",
            "buy/买:sell/卖",
            "push/推:pull/拉",
            "laugh/笑:cry/哭",
            "win/赢:lose/输",
            "remember/记住:forget/忘记",
            "question/问题:answer/答案",
            "friend/朋友:enemy/敌人",
            "brave/勇敢:timid/胆小",
            "careful/细心:careless/粗心",
            "easy/容易:difficult/困难",
            "wide/宽:narrow/窄",
            "deep/深:shallow/浅",
            "true/真:false/假",
            "young/年轻:elderly/年老",
        )
    )
)

_PLURALS = """
cat:cats dog:dogs cow:cows bird:birds rabbit:rabbits frog:frogs lamp:lamps spoon:spoons house:houses tree:trees
flower:flowers river:rivers garden:gardens kettle:kettles pillow:pillows basket:baskets box:boxes fox:foxes
dish:dishes brush:brushes bus:buses glass:glasses bench:benches beach:beaches baby:babies city:cities story:stories
berry:berries pony:ponies lady:ladies party:parties fly:flies leaf:leaves wolf:wolves knife:knives shelf:shelves
half:halves loaf:loaves scarf:scarves thief:thieves child:children man:men woman:women mouse:mice foot:feet
tooth:teeth goose:geese person:people
"""
PLURALS: tuple[tuple[str, str], ...] = tuple(
    (singular, plural) for singular, plural in (entry.split(":") for entry in _PLURALS.split())
)

# Noun and measure word: 一本书.
MEASURES: tuple[tuple[str, str], ...] = tuple(
    (noun, measure)
    for measure, nouns in (
        ("本", "书 杂志 词典 日记 小说"),
        ("只", "猫 兔子 鸭子 青蛙 老鼠 鸽子"),
        ("条", "鱼 蛇 河 裤子 毛巾 路"),
        ("张", "桌子 床 纸 地图 照片 邮票"),
        ("把", "椅子 雨伞 尺子 扫帚 钥匙 梳子"),
        ("辆", "汽车 自行车 马车 卡车"),
        ("朵", "花 云 玫瑰 荷花"),
        ("棵", "树 白菜 柳树 桃树"),
        ("匹", "马 骆驼 小马"),
        ("座", "山 桥 塔 小镇"),
        ("件", "衣服 毛衣 礼物"),
        ("双", "鞋 袜子 筷子 手套"),
    )
    for noun in nouns.split()
)

DAYS = terms(
    "Monday/星期一, Tuesday/星期二, Wednesday/星期三, Thursday/星期四, Friday/星期五, Saturday/星期六, Sunday/星期日"
)
LETTERS = tuple(Term(letter, letter) for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
NUMBERS = tuple(Term(str(n), str(n)) for n in range(41))

# Name -> (items, whether the list begins again after its end).
ORDERS: dict[str, tuple[tuple[Term, ...], bool]] = {
    "day": (DAYS, True),
    "month": (MONTHS, True),
    "season": (SEASONS, True),
    "letter": (LETTERS, False),
    "number": (NUMBERS, False),
}

_EXTRA = terms(
    "sun/太阳, moon/月亮, star/星星, river/河流, mountain/高山, bridge/桥, tree/树, flower/花, house/房子, door/门, "
    "window/窗户, table/桌子, chair/椅子, book/书, pen/钢笔, water/水, milk/牛奶, tea/茶, egg/鸡蛋, salt/盐, "
    "shoe/鞋, hat/帽子, coat/大衣, friend/朋友, mother/妈妈, father/爸爸, school/学校, market/集市, road/路, "
    "boat/小船, rain/雨, snow/雪, wind/风, morning/早上, evening/傍晚, thank you/谢谢, hello/你好, goodbye/再见, "
    "please/请"
)
_NOUNS = tuple(e.name for e in ANIMALS + PLANTS + OBJECTS)
# Every English and every Chinese word occurs once.
TRANSLATIONS: tuple[Term, ...] = tuple(
    {
        t.zh: t for t in {t.en: t for t in _NOUNS + JOBS + FOODS + COLOURS + MONTHS + HOBBIES + DAYS + _EXTRA}.values()
    }.values()
)
