"""English story parts. A story is an opening, the beats of one plot in order (one variant of each) and an ending.

`{N}` is the hero, `{He}`, `{he}`, `{his}`, `{him}` the hero's pronouns, `{M}` the helper and `{mjob}` the helper's job.
Attributes are the hero's, `{landmark}` and `{product}` those of the hero's town, `{thing}` a thing of the plot.
"""

OPENINGS = (
    "Once upon a time, {a_job} named {N} lived in {town}.",
    "{N} lived in the little town of {town} and worked there as {a_job}.",
    "In {town}, not far from {landmark}, lived {a_job} called {N}.",
    "One {day}, {N} woke up early in {his} house in {town}.",
    "It was a {weather} morning in {town}, and {N} opened the window.",
    "Long ago, in the town of {town}, there was {a_job} whose name was {N}.",
    "Everyone in {town} knew {N}, the {job} who loved {hobby}.",
    "On a {weather} day, {N} and {his} {pet} {petname} were at home in {town}.",
)
ASIDES = (
    "The sky was clear, and a soft wind came from the fields.",
    "Far away, a bell rang.",
    "{He} thought of a plate of {food} and smiled.",
    "A few children were playing near {landmark}.",
    "{He} was wearing {his} {colour} scarf, as always.",
    "The street smelled of fresh bread.",
    "{petname} the {pet} sat by the door and watched.",
    "Some people were selling {product} at the market.",
    "Birds were singing on the roofs.",
    "{He} hummed a little song.",
    "The sun was just coming up.",
    "A cat slept on a warm wall and did not move at all.",
)
ENDINGS = (
    "That evening, they ate {food} together and laughed about the whole day.",
    "From that day on, {N} and {M} were the best of friends.",
    "{N} went home happy and told {petname} the whole story.",
    "And whenever {N} passed {landmark}, {he} thought of that day and smiled.",
    "“A good friend is worth more than gold,” said {N}, and {M} agreed.",
    "That night, {N} slept well.",
    "{N} learned that asking for help is not a weakness.",
    "The people of {town} still tell this story today.",
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
WEATHER = ("sunny", "cool", "windy", "bright", "quiet", "warm", "misty")

# Plot -> (things, beats); a beat is a tuple of variants.
PLOTS: dict[str, tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]] = {
    "lost pet": (
        ("the market", "the old bridge", "the school", "the bakery"),
        (
            (
                "{He} had {a_pet} called {petname}. One morning the door was open and {petname} was gone.",
                "{His} {pet} {petname} loved to explore. That day {petname} did not come back for breakfast.",
                "After lunch, {N} called {petname}, {his} {pet}, but nobody came.",
            ),
            (
                "{N} looked under the bed and behind the house. Then {he} walked to {thing} and asked everyone there.",
                "{He} ran to {landmark} and called the name again and again. There was no answer.",
                "{N} searched all of {town}, from {thing} to {landmark}, and grew more and more worried.",
            ),
            (
                "There {he} met {M}, the {mjob}. “I saw {a_pet} near {thing},” said {M}. “Come with me!”",
                "Then {M} the {mjob} came along and listened. “Let us look together,” said {M}.",
                "“Why are you so sad?” asked {M}, a {mjob} with a kind voice. {N} explained everything.",
            ),
            (
                "They found {petname} asleep in a basket of {product}. {N} was so glad that {he} danced.",
                "Behind {thing} they heard a small sound. It was {petname}, a little dirty but quite well.",
                "They put some food on the ground and waited. Soon {petname} came out from behind {landmark}.",
            ),
        ),
    ),
    "lost thing": (
        ("key", "hat", "letter", "book", "ring", "ticket"),
        (
            (
                "{He} wanted to go out, but {his} {thing} was not in its place.",
                "In the evening {he} noticed that {his} {thing} was missing.",
                "{N} put a hand into {his} bag. The {thing} was not there any more.",
            ),
            (
                "{He} looked in every drawer and under every chair. Nothing.",
                "{N} went back along the road to {landmark} and looked at every stone.",
                "{He} tried to remember: first the market, then {landmark}, then home. Where was the {thing}?",
            ),
            (
                "{M} the {mjob} saw {him} searching. “Four eyes see more than two,” said {M}.",
                "So {he} asked {M}, {his} neighbour. {M}, who was a {mjob}, knew how to stay calm.",
                "At the corner stood {M}, the {mjob}, with something in one hand.",
            ),
            (
                "Together they found the {thing} under the {colour} cushion, where {petname} had hidden it.",
                "“Is this yours?” asked {M}. It was the {thing}! It had been lying in front of {landmark}.",
                "They laughed out loud, for the {thing} had been in {his} own pocket all the time.",
            ),
        ),
    ),
    "broken thing": (
        ("bicycle", "kite", "chair", "clock", "boat", "lamp"),
        (
            (
                "There was a loud crack, and {his} old {thing} fell apart.",
                "{N} had a {colour} {thing} that {he} loved very much. One day it broke.",
                "A strong wind blew through the house, and {his} {thing} was broken.",
            ),
            (
                "{He} tried to mend it with string, but it broke again.",
                "{N} worked on it until noon, and in the end it looked even worse.",
                "“I am {a_job}, and I know nothing about this,” {he} said sadly.",
            ),
            (
                "Then {M}, a {mjob}, knocked at the door and said, “May I try?”",
                "{N} carried it to {M}, the {mjob}, who was always good with tools.",
                "{M} the {mjob} was passing by and looked at the pieces for a long time.",
            ),
            (
                "{M} used a little glue and a lot of patience, and in the evening the {thing} was as good as new.",
                "They worked side by side. When the moon came up, the {thing} was whole again.",
                "With a new piece of wood, {M} repaired the {thing}, and {N} painted it {colour}.",
            ),
        ),
    ),
    "rain": (
        ("picnic", "concert", "market day", "race", "dance"),
        (
            (
                "{N} had planned a {thing} near {landmark}. Then the first drops fell.",
                "All week {he} had waited for the {thing}. But the clouds grew darker and darker.",
                "The {thing} was about to begin when it started to rain.",
            ),
            (
                "Everyone ran for cover. {N} stood there, wet and disappointed.",
                "The paper lamps fell down, and the {food} got wet. It was a sad sight.",
                "{petname} the {pet} hid under a table, and {N} did not know what to do.",
            ),
            (
                "“My house is big enough for all of us,” said {M}, the {mjob}.",
                "{M}, a {mjob}, had an idea. “Let us go into the hall by {landmark}!”",
                "“Rain is only water,” laughed {M} the {mjob} and brought a pile of umbrellas.",
            ),
            (
                "So they held the {thing} indoors, with candles and music, and it was better than planned.",
                "Inside it was warm and dry. They sang until the rain stopped, and a rainbow stood over {town}.",
                "They waited together and told stories. When the sun came back, the {thing} began after all.",
            ),
        ),
    ),
    "birthday": (
        ("cake", "lantern", "song", "painting"),
        (
            (
                "It was {month}, and {N} had a birthday. But nobody had said a word about it.",
                "In {month} comes {his} birthday. That year {N} thought that everyone had forgotten.",
                "{His} birthday in {month} was near, and {M} the {mjob} wanted to make a {thing} as a present.",
            ),
            (
                "{He} walked through {town} alone and looked at the shops.",
                "At {landmark} some friends were whispering. When {N} came near, they stopped.",
                "{N} sat at the window with {petname} the {pet} and waited for a letter.",
            ),
            (
                "In secret, {M} the {mjob} had been working on a {thing} for days. Then it nearly fell!",
                "{M}, the {mjob}, ran from house to house to get everything ready in time.",
                "Meanwhile {M} the {mjob} asked all the neighbours to bring {food}.",
            ),
            (
                "When {N} opened the door, everyone shouted, “Happy birthday!” The table was full of {food}.",
                "In the evening the house was full of {colour} lights, and on the table stood the present: a {thing}.",
                "“We did not forget you,” said {M} and gave {him} the {thing}. {N} had tears of joy.",
            ),
        ),
    ),
    "practice": (
        ("two weeks", "a month", "ten days", "a whole season"),
        (
            (
                "{N} loved {hobby}, and {M} the {mjob} wanted to learn it too.",
                "“Will you teach me?” asked {M}, a {mjob}, who had seen how much {N} enjoyed {hobby}.",
                "There was to be a contest at {landmark}, and {N} hoped to win with {hobby}.",
            ),
            (
                "The first day went badly. Everything went wrong, and people laughed.",
                "It was much harder than it looked, and after an hour they were both tired.",
                "At first nothing worked. “I will never manage it,” sighed {M}.",
            ),
            (
                "But they practised for {thing}, a little every evening, with {petname} watching.",
                "“Slowly,” said {N}. “We try again tomorrow.” And they tried again for {thing}.",
                "{N} made a plan: one small step each day, for {thing}.",
            ),
            (
                "In the end it went like a dream, and all of {town} clapped.",
                "On the last day everything worked. They were so proud that they bought {food} for everyone.",
                "They did not win the first prize, but they had never been so happy.",
            ),
        ),
    ),
    "fog": (
        ("a lantern", "a little bell", "a long rope", "a whistle"),
        (
            (
                "{N} was walking home when thick fog came down over the hills.",
                "On the way back to {town}, {N} could not see the road any more. Everything was white.",
                "{He} had gone out to look for {petname} the {pet}, and suddenly fog was all around.",
            ),
            (
                "{He} went left, then right, and came to the same tree three times.",
                "{He} called out, but the fog swallowed every sound.",
                "“I must stay calm,” said {N} and sat down on a stone to think.",
            ),
            (
                "Then {he} saw a light. It was {M}, the {mjob}, with {thing}.",
                "After a while {he} heard steps. {M} the {mjob} had come with {thing} to look for lost walkers.",
                "“Is anybody there?” called a voice. It was {M}, a {mjob}, who carried {thing}.",
            ),
            (
                "Step by step they walked until they saw {landmark}. They were home.",
                "Hand in hand they followed the river, and soon the first house of {town} stood before them.",
                "{M} knew the way well. Before dark they sat by the fire with {food}.",
            ),
        ),
    ),
    "new neighbour": (
        ("a basket of {food}", "a pot of tea", "a bunch of flowers", "a {colour} blanket"),
        (
            (
                "A new neighbour had moved in next door: {M}, a {mjob}. But {M} was very shy.",
                "{M} the {mjob} was new in {town} and knew nobody there.",
                "Every day {N} saw {M}, the new {mjob}, sitting alone near {landmark}.",
            ),
            (
                "{N} said hello, but {M} only nodded and looked away.",
                "The curtains of the house next door stayed closed all day.",
                "{N} wondered what to do. “I was new here once, too,” {he} thought.",
            ),
            (
                "So {he} took {thing}, went over and knocked.",
                "The next morning {N} put {thing} in front of the door with a small note.",
                "Then {petname}, {his} {pet}, walked straight into the garden of {M}, and {N} followed with {thing}.",
            ),
            (
                "{M} opened the door and laughed for the first time. They talked until late about {hobby}.",
                "“Thank you,” said {M}. “Now {town} feels like home.”",
                "Soon they found out that they both liked {hobby}, and the evening passed quickly.",
            ),
        ),
    ),
    "ill friend": (
        ("soup", "tea with honey", "a funny book", "warm socks"),
        (
            (
                "One morning {N} heard that {M} the {mjob} had a bad cold.",
                "{M}, the {mjob}, had not been seen at {landmark} for days.",
                "A letter came from {M} the {mjob}: “I am ill and cannot get up.”",
            ),
            (
                "{N} had a lot to do that day, but {he} put everything aside.",
                "It was far to walk and the wind was cold, but {N} did not wait.",
                "“Work can wait,” said {N}. “A friend cannot.”",
            ),
            (
                "{He} took {thing} along, and {petname} the {pet} came too.",
                "{He} packed {thing} and some {food} into a basket.",
                "{N} brought {thing}, sat down by the bed and told stories of {town}.",
            ),
            (
                "After three days {M} was well again and could laugh.",
                "{M} smiled. “You are the best medicine,” the {mjob} said.",
                "When {M} was healthy again, the two of them went for a long walk to {landmark}.",
            ),
        ),
    ),
    "dry garden": (
        ("sunflowers", "roses", "beans", "pumpkins"),
        (
            (
                "{N} had a garden full of {thing}. But for weeks no rain had fallen.",
                "That summer was so dry that the {thing} in {his} garden let their heads hang.",
                "{He} had planted {thing} behind the house, and now the ground was as hard as stone.",
            ),
            (
                "{He} carried water from the well until {his} arms hurt.",
                "The well was nearly empty, and {N} was worried.",
                "{N} looked at the sky every hour, but it stayed blue.",
            ),
            (
                "{M}, the {mjob}, came with a cart and two big barrels of water.",
                "Then {M} the {mjob} called all the neighbours, and they made a long line from the river.",
                "“In my yard there is an old pump,” said {M}, the {mjob}. “Let us try it.”",
            ),
            (
                "In the evening the earth was wet, and after a week the {thing} stood tall again.",
                "The {thing} were saved, and {N} gave the finest of them to {M}.",
                "That very night it rained at last. The {thing} grew as never before.",
            ),
        ),
    ),
}
