"""English phrasings of questions: those of the training text, and those that only held-out questions use.

The slots are those of `text_en`. No held-out phrasing may be part of a phrasing that is trained.
"""

QUESTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "person": {
        "town": (
            "Where does {s} live?",
            "Which town does {s} live in?",
            "In which town is {p} home?",
            "Where is {p} house?",
            "What is the name of the town where {s} lives?",
            "What town does {s} live in?",
            "Which town do you go to if you visit {o}?",
            "Where is {s} at home?",
        ),
        "job": (
            "What is {p} job?",
            "What does {s} do for a living?",
            "What kind of work does {s} do?",
            "What does {s} work as?",
            "What is {p} profession?",
            "What is {p} work?",
            "How does {s} make a living?",
            "Which job does {s} have?",
            "What does {s} do to earn a living?",
            "What work earns {o} money?",
        ),
        "pet": (
            "What pet does {s} have?",
            "What animal does {s} keep?",
            "What kind of pet lives with {o}?",
            "What animal is {p} pet?",
            "Which animal does {s} look after?",
            "Which pet does {s} have?",
            "Does {s} have a pet, and which one?",
            "What animal does {s} have at home?",
        ),
        "petname": (
            "What is {p} pet called?",
            "What is the name of {p} pet?",
            "What name did {s} give the pet?",
            "What does {s} call the pet?",
            "Which name does {p} pet have?",
            "What do people call {p} pet?",
            "Can you name {p} pet?",
            "How did {s} name the pet?",
        ),
        "food": (
            "What is {p} favourite food?",
            "Which food does {s} like best?",
            "What does {s} like to eat most?",
            "What food does {s} love?",
            "What does {s} love to eat?",
            "What would {s} eat every day?",
            "What tastes best to {o}?",
            "What should we cook for {o}?",
        ),
        "colour": (
            "What is {p} favourite colour?",
            "Which colour does {s} like best?",
            "What colour does {s} like most?",
            "What colour does {s} love?",
            "Of all colours, which one does {s} like best?",
            "What is the colour that {s} loves?",
            "Which colour would {s} choose?",
            "What colour does {s} prefer?",
        ),
        "month": (
            "When is {p} birthday?",
            "In which month was {s} born?",
            "Which month is {p} birthday in?",
            "When was {s} born?",
            "In what month does {s} have a birthday?",
            "In which month is {p} birthday?",
            "Which month does {s} have a birthday in?",
            "When does {s} celebrate a birthday?",
        ),
        "hobby": (
            "What is {p} hobby?",
            "What does {s} do on free days?",
            "What does {s} enjoy doing?",
            "Which hobby does {s} have?",
            "What does {s} like to do at weekends?",
            "How does {s} spend the weekends?",
            "What is {s} fond of doing?",
            "What does {s} do for fun?",
        ),
    },
    "town": {
        "landmark": (
            "What is {s} famous for?",
            "What do visitors see in {s}?",
            "What is the landmark of {s}?",
            "What is the best-known place in {s}?",
            "Why do people visit {s}?",
            "What should visitors look at in {s}?",
        ),
        "product": (
            "What is made in {s}?",
            "What can you buy in {s}?",
            "What does {s} sell?",
            "What product is {s} known for?",
            "What do people in {s} make?",
            "What do you buy in {s}?",
        ),
        "terrain": (
            "Where does {s} lie?",
            "Where was {s} built?",
            "In what kind of place is {s}?",
            "Where do you find {s}?",
            "What is the land around {s} like?",
            "What is around {s}?",
        ),
    },
    "animal": {
        "sound": (
            "What does {s} say?",
            "What sound does {s} make?",
            "What is the sound of {s}?",
            "Which sound comes from {s}?",
            "What do you hear from {s}?",
            "How does {s} sound?",
        ),
        "home": (
            "Where does {s} live?",
            "Where can you find {s}?",
            "Where is the home of {s}?",
            "In what place does {s} live?",
            "Where is {s} at home?",
            "Where would you look for {s}?",
        ),
        "diet": (
            "What does {s} eat?",
            "What is the food of {s}?",
            "What does {s} like to eat?",
            "What do you feed {s}?",
            "Which food does {s} eat?",
            "What does {s} feed on?",
        ),
        "class": (
            "What kind of animal is {s}?",
            "To which class of animals does {s} belong?",
            "Which class of animals is {s} in?",
            "What sort of animal is {s}?",
            "What type of animal is {s}?",
            "Which class of animals does {s} belong to?",
        ),
    },
    "plant": {
        "colour": (
            "What colour is {s}?",
            "Which colour does {s} have?",
            "What is the colour of {s}?",
            "What colour does {s} show?",
            "Which colour is {s}?",
            "In what colour do we see {s}?",
        ),
        "season": (
            "When is {s} most beautiful?",
            "In which season is {s} at its best?",
            "Which season is best for {s}?",
            "What is the season of {s}?",
            "When should you look at {s}?",
            "Which season suits {s} best?",
        ),
        "place": (
            "Where does {s} grow?",
            "Where can you find {s}?",
            "In what place does {s} grow?",
            "Where should you look for {s}?",
            "Where do people see {s}?",
            "Where would you go to see {s}?",
        ),
    },
    "object": {
        "room": (
            "Where is {s} kept?",
            "In which room is {s}?",
            "Where will you find {s}?",
            "Which room is {s} in?",
            "What is the place of {s}?",
            "Where do we keep {s}?",
        ),
        "material": (
            "What is {s} made of?",
            "Which material is {s} made of?",
            "What is the material of {s}?",
            "What did the maker use for {s}?",
            "From which material is {s} made?",
            "What material do you need to make {s}?",
        ),
        "use": (
            "What is {s} used for?",
            "What do people do with {s}?",
            "What do we need {s} for?",
            "What is the use of {s}?",
            "What is {s} good for?",
            "Why do people need {s}?",
        ),
    },
}

# Only held-out questions are put in these ways.
HELD_OUT_QUESTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "person": {
        "town": ("Where is {p} home?", "In what town does {s} live?"),
        "job": ("What job does {s} have?", "What work does {s} do?"),
        "pet": ("What pet does {s} keep?", "Which animal lives with {o}?"),
        "petname": ("What is {p} pet's name?", "Which name did {s} give the pet?"),
        "food": ("Which food is {p} favourite?", "What food does {s} like best?"),
        "colour": ("Which colour is {p} favourite?", "What colour does {s} like best?"),
        "month": ("In what month is {p} birthday?", "Which month was {s} born in?"),
        "hobby": ("What hobby does {s} have?", "What does {s} like doing on free days?"),
    },
    "town": {
        "landmark": ("What do people come to see in {s}?", "What makes {s} famous?"),
        "product": ("What do people make in {s}?", "Which product can you buy in {s}?"),
        "terrain": ("In what kind of place does {s} lie?", "Where is the town of {s}?"),
    },
    "animal": {
        "sound": ("Which sound does {s} make?", "What noise does {s} make?"),
        "home": ("In which place does {s} live?", "Where do you find {s}?"),
        "diet": ("What food does {s} eat?", "Which food does {s} like?"),
        "class": ("Which kind of animal is {s}?", "To what class of animals does {s} belong?"),
    },
    "plant": {
        "colour": ("What colour does {s} have?", "Can you name the colour of {s}?"),
        "season": ("In what season is {s} most beautiful?", "Which season is {s} most beautiful in?"),
        "place": ("In which place does {s} grow?", "Where do you find {s}?"),
    },
    "object": {
        "room": ("In what room is {s} kept?", "Where do people keep {s}?"),
        "material": ("What material is {s} made of?", "What is {s} made from?"),
        "use": ("What purpose does {s} serve?", "What do people use {s} for?"),
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
FOLLOW_UPS = ("And {p} {noun}?", "What about {p} {noun}?", "How about {p} {noun}?", "Now {p} {noun}, please.")

# Ways to put a question in a conversation.
WRAPPERS = (
    *("{}",) * 8,
    "Hi! {}",
    "Please tell me: {}",
    "I have a question. {}",
    "Hello, MiniMate. {}",
    "Tell me, please. {}",
    "Hello! {}",
)

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

STORY_REQUESTS = (
    "Tell me a short story about {}.",
    "I would like to hear a story with {}.",
    "Do you know a story about {}?",
    "Please tell a story about {}.",
    "Write a little story about {}.",
)
DESCRIBE_REQUESTS = ("Tell me about {}.", "Who is {}?", "What do you know about {}?", "Please describe {}.")
