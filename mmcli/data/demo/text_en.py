"""English sentence templates: how facts are stated, asked and answered.

A slot that is an attribute (`{town}`) is filled with its value; `{a_job}` adds the article. `{S}` and `{s}` are the
subject at the start and inside a sentence (a name or a pronoun), `{P}` and `{p}` the possessive, `{o}` the object;
`{N}` and `{Ns}` are always the name. What a template tells is read from its slots, so there is no second list to keep.
"""

STATEMENTS: dict[str, tuple[str, ...]] = {
    "person": (
        "{S} lives in {town}.",
        "{P} home is in {town}.",
        "{S} has a small house in {town}.",
        "The town where {s} lives is called {town}.",
        "{town} is the town where {s} lives.",
        "{S} has lived in {town} for many years.",
        "You can find {o} in {town}.",
        "{S} is {a_job}.",
        "{S} works as {a_job}.",
        "By trade, {s} is {a_job}.",
        "Everyone knows {o} as a good {job}.",
        "{S} became {a_job} a long time ago.",
        "{P} job is that of {a_job}.",
        "{S} has {a_pet}.",
        "{S} keeps {a_pet} at home.",
        "{P} pet is {a_pet}.",
        "The animal that lives with {o} is {a_pet}.",
        "{S} looks after {a_pet}.",
        "{S} shares the house with {a_pet}.",
        "{P} pet is called {petname}.",
        "{P} pet answers to the name {petname}.",
        "{petname} is the name of {p} pet.",
        "At home, a pet called {petname} is waiting for {o}.",
        "{P} {pet} is called {petname}.",
        "{P} favourite food is {food}.",
        "{S} likes {food} more than any other food.",
        "Nothing tastes better to {o} than {food}.",
        "{S} could eat {food} every day.",
        "Give {o} {food} and you will see a smile.",
        "{P} favourite colour is {colour}.",
        "{S} likes the colour {colour} best.",
        "Of all colours, {s} likes {colour} most.",
        "{S} always chooses {colour}, a favourite colour.",
        "The colour {s} loves is {colour}.",
        "{P} birthday is in {month}.",
        "{S} was born in {month}.",
        "{S} celebrates a birthday in {month}.",
        "Every {month}, {s} has a birthday party.",
        "The month of {p} birthday is {month}.",
        "{P} hobby is {hobby}.",
        "{S} enjoys {hobby}.",
        "On free days, {s} likes {hobby}.",
        "{S} spends many weekends {hobby}.",
        "Nothing makes {o} happier than {hobby}.",
        "{N} is {a_job} in {town}.",
        "The {job} {N} lives in {town}.",
        "{N}, {a_job} from {town}, likes {food}.",
        "{N} lives in {town} with {a_pet} called {petname}.",
        "{N} has {a_pet}, and its name is {petname}.",
        "{Ns} {pet} {petname} is well known in {town}.",
        "{N} likes {food} and {hobby}.",
        "{N}, who was born in {month}, loves the colour {colour}.",
        "When {N} is not at work as {a_job}, {s} enjoys {hobby}.",
        "In {month}, friends bring {food} to {Ns} birthday.",
        "{N} likes {colour} things and {hobby}.",
        "{N} and a {pet} called {petname} live in {town}.",
        "In {town}, {N} the {job} is known to everyone.",
    ),
    "town": (
        "{S} is famous for {landmark}.",
        "The best-known place in {N} is {landmark}.",
        "Visitors come to {N} to see {landmark}.",
        "{landmark} stands in the middle of {N}.",
        "{S} is known for its {product}.",
        "People in {N} make and sell {product}.",
        "At the market in {N} you can buy {product}.",
        "The {product} of {N} is the best in the Green Valley.",
        "{S} lies {terrain}.",
        "{N} is a small town {terrain}.",
        "{N} was built {terrain} long ago.",
        "The town to the north of {N} is {north}.",
        "North of {N} lies {north}.",
        "If you walk north from {N}, you come to {north}.",
        "The town to the south of {N} is {south}.",
        "South of {N} lies {south}.",
        "If you walk south from {N}, you come to {south}.",
        "The town to the east of {N} is {east}.",
        "East of {N} lies {east}.",
        "If you walk east from {N}, you come to {east}.",
        "The town to the west of {N} is {west}.",
        "West of {N} lies {west}.",
        "If you walk west from {N}, you come to {west}.",
        "{N}, a town {terrain}, is known for its {product}.",
        "Many people visit {N} for {landmark} and buy {product} there.",
    ),
    "animal": (
        "{S} says {sound}.",
        "The sound of {s} is {sound}.",
        "When you hear {sound}, it may be {s}.",
        "{S} lives {home}.",
        "{P} home is {home}.",
        "You can find {s} {home}.",
        "{S} eats {diet}.",
        "{P} food is {diet}.",
        "{S} likes to eat {diet}.",
        "{S} is {class}.",
        "{S} belongs to the animals we call {class}.",
        "{S} lives {home} and eats {diet}.",
        "{S} is {class} that says {sound}.",
    ),
    "plant": (
        "{S} is {colour}.",
        "The colour of {s} is {colour}.",
        "People like the {colour} of {s}.",
        "{S} is most beautiful in {season}.",
        "The best time to see {s} is {season}.",
        "{season} is the season of {s}.",
        "{S} grows {place}.",
        "You can find {s} {place}.",
        "{S} grows {place} and is {colour}.",
        "In {season}, {s} shines {colour} in the sun.",
    ),
    "object": (
        "{S} is kept in {room}.",
        "You will find {s} in {room}.",
        "The place of {s} is {room}.",
        "{S} is made of {material}.",
        "The maker used {material} for {s}.",
        "{S} is used for {use}.",
        "People use {s} for {use}.",
        "We need {s} for {use}.",
        "{S} in {room} is made of {material}.",
        "{S} is made of {material} and used for {use}.",
    ),
}

# The first person, for letters and introductions.
LETTER: tuple[str, ...] = (
    "I live in {town}.",
    "My home is in {town}.",
    "I am {a_job}.",
    "I work as {a_job}.",
    "I have {a_pet} called {petname}.",
    "My pet is {a_pet}.",
    "My pet is called {petname}.",
    "My favourite food is {food}.",
    "I love to eat {food}.",
    "My favourite colour is {colour}.",
    "I like {colour} best.",
    "My birthday is in {month}.",
    "I was born in {month}.",
    "My hobby is {hobby}.",
    "On free days I enjoy {hobby}.",
    "I am {a_job} in {town}, and I like {hobby}.",
)

QUESTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "person": {
        "town": ("Where does {s} live?", "Which town does {s} live in?", "In which town is {p} home?"),
        "job": ("What is {p} job?", "What does {s} do for a living?", "What kind of work does {s} do?"),
        "pet": ("What pet does {s} have?", "What animal does {s} keep?", "What kind of pet lives with {o}?"),
        "petname": ("What is {p} pet called?", "What is the name of {p} pet?", "What name did {s} give the pet?"),
        "food": ("What is {p} favourite food?", "Which food does {s} like best?", "What does {s} like to eat most?"),
        "colour": (
            "What is {p} favourite colour?",
            "Which colour does {s} like best?",
            "What colour does {s} like most?",
        ),
        "month": ("When is {p} birthday?", "In which month was {s} born?", "Which month is {p} birthday in?"),
        "hobby": ("What is {p} hobby?", "What does {s} do on free days?", "What does {s} enjoy doing?"),
    },
    "town": {
        "landmark": ("What is {s} famous for?", "What do visitors see in {s}?", "What is the landmark of {s}?"),
        "product": ("What is made in {s}?", "What can you buy in {s}?", "What does {s} sell?"),
        "terrain": ("Where does {s} lie?", "Where was {s} built?"),
        "north": ("Which town is north of {s}?", "What lies to the north of {s}?"),
        "south": ("Which town is south of {s}?", "What lies to the south of {s}?"),
        "east": ("Which town is east of {s}?", "What lies to the east of {s}?"),
        "west": ("Which town is west of {s}?", "What lies to the west of {s}?"),
    },
    "animal": {
        "sound": ("What does {s} say?", "What sound does {s} make?"),
        "home": ("Where does {s} live?", "Where can you find {s}?"),
        "diet": ("What does {s} eat?", "What is the food of {s}?"),
        "class": ("What kind of animal is {s}?", "To which class of animals does {s} belong?"),
    },
    "plant": {
        "colour": ("What colour is {s}?", "Which colour does {s} have?"),
        "season": ("When is {s} most beautiful?", "In which season is {s} at its best?"),
        "place": ("Where does {s} grow?", "Where can you find {s}?"),
    },
    "object": {
        "room": ("Where is {s} kept?", "In which room is {s}?"),
        "material": ("What is {s} made of?", "Which material is {s} made of?"),
        "use": ("What is {s} used for?", "What do people do with {s}?"),
    },
}

# Full answers. {v} is the value as it is shown: with its article or preposition.
ANSWERS: dict[str, dict[str, tuple[str, ...]]] = {
    "person": {
        "town": ("{S} lives in {v}.", "{P} home is in {v}."),
        "job": ("{S} is {v}.", "{S} works as {v}."),
        "pet": ("{S} has {v}.", "{P} pet is {v}."),
        "petname": ("{P} pet is called {v}.", "The name of {p} pet is {v}."),
        "food": ("{P} favourite food is {v}.", "{S} likes {v} best."),
        "colour": ("{P} favourite colour is {v}.", "{S} likes {v} best."),
        "month": ("{P} birthday is in {v}.", "{S} was born in {v}."),
        "hobby": ("{P} hobby is {v}.", "{S} enjoys {v}."),
    },
    "town": {
        "landmark": ("{S} is famous for {v}.", "Visitors to {s} see {v}."),
        "product": ("{S} is known for its {v}.", "People in {s} make and sell {v}."),
        "terrain": ("{S} lies {v}.", "{S} was built {v}."),
        "north": ("North of {s} lies {v}.", "The town to the north of {s} is {v}."),
        "south": ("South of {s} lies {v}.", "The town to the south of {s} is {v}."),
        "east": ("East of {s} lies {v}.", "The town to the east of {s} is {v}."),
        "west": ("West of {s} lies {v}.", "The town to the west of {s} is {v}."),
    },
    "animal": {
        "sound": ("{S} says {v}.",),
        "home": ("{S} lives {v}.",),
        "diet": ("{S} eats {v}.",),
        "class": ("{S} is {v}.",),
    },
    "plant": {"colour": ("{S} is {v}.",), "season": ("{S} is most beautiful in {v}.",), "place": ("{S} grows {v}.",)},
    "object": {
        "room": ("{S} is kept in {v}.",),
        "material": ("{S} is made of {v}.",),
        "use": ("{S} is used for {v}.",),
    },
}

# What a follow-up calls the attribute: "And her pet?"
NOUNS = {
    "town": "town",
    "job": "job",
    "pet": "pet",
    "petname": "pet's name",
    "food": "favourite food",
    "colour": "favourite colour",
    "month": "birthday",
    "hobby": "hobby",
}
FOLLOW_UPS = ("And {p} {noun}?", "What about {p} {noun}?")

# Ways to put a question in a conversation.
WRAPPERS = ("{}", "{}", "{}", "{}", "Hi! {}", "Please tell me: {}", "I have a question. {}", "Hello, MiniMate. {}")

# Sentences about two or three people who share a value. {names} is "Mira and Tom", {v} the value as it is shown.
SHARED = {
    "town": ("{names} live in {v}.", "{names} are neighbours in {v}.", "In {v} you can meet {names}."),
    "job": ("{names} do the same work: each of them is {v}.", "Each of them is {v}: {names}."),
    "pet": ("Each of these people has {v}: {names}.", "{names} can talk about pets for hours, for each has {v}."),
    "food": ("{names} all like {v} best.", "When there is {v} for dinner, {names} are glad."),
    "colour": ("{names} have the same favourite colour, {v}.", "The colour {v} is loved by {names}."),
    "month": ("{names} have their birthdays in {v}.", "In {v} there are birthday cakes for {names}."),
    "hobby": ("{names} share a hobby: {v}.", "{names} often meet, because they all enjoy {v}."),
}
TITLES = {
    "town": "Where people live",
    "job": "Who does what",
    "pet": "Who has which pet",
    "petname": "What the pets are called",
    "food": "Favourite foods",
    "colour": "Favourite colours",
    "month": "Birthdays",
    "hobby": "Hobbies",
}

# Questions with yes or no, and the way back from the value to the person.
YES_NO = {
    "town": "Does {s} live in {v}?",
    "job": "Is {s} {v}?",
    "pet": "Does {s} have {v}?",
    "petname": "Is {p} pet called {v}?",
    "food": "Is {p} favourite food {v}?",
    "colour": "Is {p} favourite colour {v}?",
    "month": "Is {p} birthday in {v}?",
    "hobby": "Is {p} hobby {v}?",
}
WHO_WORKS = ("Who is the {job} in {town}?", "The {job} in {town} is {N}.")
WHO_KEEPS = ("Whose pet is called {petname}?", "{petname} is {Ns} pet.")

# Opening and closing of a letter, each with the name.
LETTER_FRAMES = (
    ("Dear friend, my name is {}.", "Your friend, {}"),
    ("Hello! I am {}.", "Bye for now, {}"),
    ("My name is {}.", "Nice to meet you!"),
    ("Good morning, everyone! My name is {}.", "Come and visit me, {} is always at home on Sunday."),
    ("{} wrote in a diary:", "That is all for today."),
)

STORY_REQUESTS = (
    "Tell me a short story about {}.",
    "I would like to hear a story with {}.",
    "Do you know a story about {}?",
    "Please tell a story about {}.",
)
DESCRIBE_REQUESTS = ("Tell me about {}.", "Who is {}?", "What do you know about {}?", "Please describe {}.")
