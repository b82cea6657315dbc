"""The closed world: invented people and towns, and a few animals, plants and objects, with their facts.

The world is fixed. It does not depend on the seed of the corpus, because the held-out questions ask about it. A fact is
an (entity, attribute) pair with one value, named in both languages. About a fifth of the pairs are held out: documents
state them in declarative sentences, and nothing ever asks for them.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

from mmcli.data.demo.draw import Draw, held_out

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, Language] = ("en", "zh")
OTHER: dict[Language, Language] = {"en": "zh", "zh": "en"}
HELD_OUT_SHARE = 0.22


class Term(NamedTuple):
    """One thing named in both languages."""

    en: str
    zh: str

    def say(self, language: Language) -> str:
        return self.en if language == "en" else self.zh


@dataclass(frozen=True, eq=False)
class Entity:
    """Something that facts are about; each is itself only. `values` maps an attribute to its value."""

    kind: str
    name: Term
    values: dict[str, Term]
    female: bool = False

    @property
    def key(self) -> str:
        return f"{self.kind}:{self.name.en}"


def terms(text: str) -> tuple[Term, ...]:
    """'cat/猫, dog/狗' as terms."""
    pairs = (entry.strip().split("/") for entry in text.split(","))
    return tuple(Term(en, zh) for en, zh in pairs)


WOMEN = terms(
    "Mira/米拉, Lily/莉莉, Nora/诺拉, Ruby/露比, Rosa/罗莎, Tina/蒂娜, Hannah/汉娜, Clara/克拉拉, Sofia/索菲, "
    "Julia/茱莉, Xiaomei/小梅, Lanlan/兰兰, Tingting/婷婷, Xiaohui/小慧, Yaya/雅雅"
)
MEN = terms(
    "Tom/汤姆, Leo/里奥, Max/麦克斯, Sam/山姆, Jack/杰克, Oscar/奥斯卡, Felix/菲利, Hugo/雨果, Peter/彼得, "
    "Daniel/丹尼, Martin/马丁, Xiaoming/小明, Dawei/大伟, Lele/乐乐, Haohao/浩浩"
)
JOBS = terms(
    "baker/面包师, doctor/医生, teacher/老师, farmer/农夫, fisher/渔夫, tailor/裁缝, carpenter/木匠, gardener/园丁, "
    "painter/画家, cook/厨师, singer/歌手, pilot/飞行员"
)
PETS = terms(
    "cat/猫, dog/狗, rabbit/兔子, parrot/鹦鹉, hen/母鸡, turtle/乌龟, hamster/仓鼠, hedgehog/刺猬, duck/鸭子, goat/山羊"
)
FOODS = terms(
    "noodles/面条, dumplings/饺子, pancakes/煎饼, tomato soup/番茄汤, fried rice/炒饭, apple pie/苹果派, "
    "grapes/葡萄, watermelon/西瓜, strawberries/草莓, corn/玉米, chocolate/巧克力, ice cream/冰淇淋"
)
COLOURS = terms(
    "red/红色, blue/蓝色, green/绿色, yellow/黄色, purple/紫色, white/白色, black/黑色, pink/粉色, brown/棕色, "
    "grey/灰色"
)
MONTHS = terms(
    "January/一月, February/二月, March/三月, April/四月, May/五月, June/六月, July/七月, August/八月, "
    "September/九月, October/十月, November/十一月, December/十二月"
)
HOBBIES = terms(
    "swimming/游泳, reading/看书, dancing/跳舞, drawing/画画, cycling/骑车, running/跑步, playing chess/下棋, "
    "flying kites/放风筝, singing/唱歌, hiking/爬山, skating/滑冰, knitting/织毛衣"
)
PET_NAMES = terms(
    "Biscuit/饼干, Snowball/雪球, Pudding/布丁, Cocoa/可可, Peanut/花生, Button/纽扣, Lucky/来福, Sunny/阳阳, "
    "Bean/豆豆, Fluffy/毛毛, Bubbles/泡泡, Candy/糖糖, Cherry/樱桃, Honey/蜜蜜, Jelly/果冻, Lemon/柠檬, Mango/芒果, "
    "Muffin/松饼, Olive/橄榄, Pearl/珍珠, Plum/梅子, Shadow/影子, Spot/点点, Sprout/豆芽, Sugar/砂糖, Tiger/虎子, "
    "Waffle/华夫, Dot/圆圆, Rocket/火箭, Sesame/芝麻"
)
SEASONS = terms("spring/春天, summer/夏天, autumn/秋天, winter/冬天")

# Name, landmark, product, terrain.
TOWN_ROWS = """
Fernhill/青山镇; the clock tower/钟楼; honey/蜂蜜; in the hills/山上
Snowdale/雪谷镇; the old well/古井; wool/羊毛; in a valley/山谷里
Pinecrest/松岭镇; the big oak/大橡树; paper/纸张; in the forest/森林里
Maplewood/枫林镇; the tea house/茶馆; apples/苹果; in the forest/森林里
Sandport/沙港镇; the lighthouse/灯塔; salt/海盐; on the coast/海边
Stonebridge/石桥镇; the museum/博物馆; pottery/陶器; by the river/河边
Moonlake/月湖镇; the fountain/喷泉; silk/丝绸; by the lake/湖边
Rosefield/玫瑰镇; the library/图书馆; perfume/香水; on the plain/平原上
Windmere/风车镇; the rope bridge/吊桥; cheese/奶酪; on the plain/平原上
Shellbay/贝湾镇; the fish market/鱼市; lace/蕾丝; on the coast/海边
"""

# Name, sound, home, food, class.
ANIMAL_ROWS = """
cat/猫; meow/喵喵; in a house/屋子里; fish/鱼; a mammal/哺乳动物
dog/狗; woof/汪汪; in a kennel/狗窝里; bones/骨头; a mammal/哺乳动物
sheep/绵羊; baa/咩咩; in a pen/羊圈里; grass/青草; a mammal/哺乳动物
horse/马; neigh/咴咴; in a stable/马厩里; hay/干草; a mammal/哺乳动物
pig/猪; oink/哼哼; in a sty/猪圈里; corn/玉米; a mammal/哺乳动物
duck/鸭子; quack/嘎嘎; in a pond/池塘里; snails/田螺; a bird/鸟类
frog/青蛙; croak/呱呱; in a pond/池塘里; insects/虫子; an amphibian/两栖动物
bee/蜜蜂; buzz/嗡嗡; in a hive/蜂巢里; nectar/花蜜; an insect/昆虫
owl/猫头鹰; hoot/咕咕; in a hollow tree/树洞里; mice/田鼠; a bird/鸟类
mouse/老鼠; squeak/吱吱; in a hole/地洞里; cheese/奶酪; a mammal/哺乳动物
wolf/狼; howl/嗷呜; in a den/狼穴里; meat/肉; a mammal/哺乳动物
monkey/猴子; chatter/叽喳; in the jungle/丛林里; bananas/香蕉; a mammal/哺乳动物
"""

# Name, colour, season in which it is at its best, place.
PLANT_ROWS = """
rose/玫瑰; red/红色; spring/春天; in the garden/花园里
sunflower/向日葵; yellow/黄色; summer/夏天; in the field/田野里
lotus/荷花; pink/粉色; summer/夏天; in the pond/池塘里
daisy/雏菊; white/白色; spring/春天; in the meadow/草地上
maple/枫树; red/红色; autumn/秋天; on the hillside/山坡上
plum tree/梅树; white/白色; winter/冬天; in the courtyard/院子里
peach tree/桃树; pink/粉色; spring/春天; in the orchard/果园里
cactus/仙人掌; green/绿色; summer/夏天; in the desert/沙漠里
"""

# Name, room, material, use.
OBJECT_ROWS = """
kettle/水壶; the kitchen/厨房; metal/金属; boiling water/烧水
spoon/勺子; the kitchen/厨房; wood/木头; eating soup/喝汤
lamp/台灯; the study/书房; glass/玻璃; lighting the room/照明
pillow/枕头; the bedroom/卧室; cotton/棉花; sleeping/睡觉
broom/扫帚; the hall/门厅; straw/稻草; sweeping the floor/扫地
mirror/镜子; the bathroom/浴室; glass/玻璃; combing hair/梳头
hammer/锤子; the shed/工具房; metal/金属; driving nails/钉钉子
basket/篮子; the kitchen/厨房; straw/稻草; carrying fruit/装水果
curtain/窗帘; the bedroom/卧室; cloth/布; keeping out the sun/遮阳
notebook/笔记本; the study/书房; paper/纸; writing/写字
kite/风筝; the living room/客厅; paper/纸; flying in the wind/放飞
blanket/毯子; the bedroom/卧室; wool/羊毛; keeping warm/保暖
"""

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "person": ("town", "job", "pet", "petname", "food", "colour", "month", "hobby"),
    "town": ("landmark", "product", "terrain"),
    "animal": ("sound", "home", "diet", "class"),
    "plant": ("colour", "season", "place"),
    "object": ("room", "material", "use"),
}


def _table(kind: str, rows: str) -> tuple[Entity, ...]:
    result = []
    for row in rows.strip().splitlines():
        name, *values = terms(row.replace(";", ","))
        result.append(Entity(kind, name, dict(zip(ATTRIBUTES[kind], values, strict=True))))
    return tuple(result)


TOWNS = _table("town", TOWN_ROWS)
ANIMALS = _table("animal", ANIMAL_ROWS)
PLANTS = _table("plant", PLANT_ROWS)
OBJECTS = _table("object", OBJECT_ROWS)


def _people() -> tuple[Entity, ...]:
    draw = Draw(0, "people")
    names = draw.shuffled([(name, True) for name in WOMEN] + [(name, False) for name in MEN])
    choices = {"pet": PETS, "food": FOODS, "colour": COLOURS, "month": MONTHS, "hobby": HOBBIES, "petname": PET_NAMES}
    decks = {attribute: draw.deck(values) for attribute, values in choices.items()}
    result = []
    for i, (name, female) in enumerate(names):
        # Steps of five through the twelve jobs: the three people of a town have three different jobs.
        values = {"town": TOWNS[i // 3].name, "job": JOBS[(i * 5 + i // 12) % len(JOBS)]}
        values |= {attribute: next(deck) for attribute, deck in decks.items()}
        result.append(Entity("person", name, values, female))
    return tuple(result)


PEOPLE = _people()
MAIN_PEOPLE = PEOPLE[::3]
"""One person of each town who is spoken of twice as often: uneven knowledge is learned sooner than even knowledge."""
ENTITIES = PEOPLE + TOWNS + ANIMALS + PLANTS + OBJECTS
TOWN_BY_NAME = {town.name: town for town in TOWNS}


def fact_key(entity: Entity, attribute: str) -> str:
    """The name of a fact, such as 'person:Mira.pet'."""
    return f"{entity.key}.{attribute}"


@cache
def held_out_facts() -> frozenset[str]:
    """Keys of the facts that nothing asks for: the same share of every attribute."""
    chosen: list[str] = []
    for kind, attributes in ATTRIBUTES.items():
        for attribute in attributes:
            keys = [fact_key(e, attribute) for e in ENTITIES if e.kind == kind and attribute in e.values]
            chosen.extend(sorted(held_out(keys, HELD_OUT_SHARE)))
    return frozenset(chosen)


def is_held_out(entity: Entity, attribute: str) -> bool:
    """Whether this fact may only be stated, never asked."""
    return fact_key(entity, attribute) in held_out_facts()


@cache
def values_of(kind: str, attribute: str) -> tuple[Term, ...]:
    """The different values of an attribute, in the order of the entities."""
    return tuple(dict.fromkeys(e.values[attribute] for e in ENTITIES if e.kind == kind and attribute in e.values))
