# ruff: noqa: RUF001, E501 (characters that look alike are what these texts are about)
"""Clean text in many languages, written for these tests, with what looks like damage in some of them and is none."""

import unicodedata

LANGUAGES = {
    "English": [
        "The ferry leaves the harbour at half past six, when the gulls are still asleep on the roofs of the fish market. “You’ll want a coat,” the captain says to everyone – it’s colder out there than people think. The crossing takes forty minutes; on clear days one can see the lighthouse from the café on the pier.",
        "My grandmother kept her recipes in a biscuit tin. Most were written on the backs of envelopes: ½ cup of sugar, 180 °C for 25 minutes, ‘until it smells right’. Nobody has ever managed to bake her naïve little almond cakes from these notes… and yet every December we try again, with a new résumé of our failures.",
    ],
    "French": [
        "« Où étiez-vous hier soir ? » demanda l’inspecteur. Le boulanger haussa les épaules : « Chez ma sœur, à Nîmes ; elle fêtait ses cinquante ans ! » Personne ne l’avait vu, sauf un garçon de café qui rêvait déjà à l’été. Le cœur du village, c’était le marché, où l’on achetait du maïs, des pâtés et des œufs.",
        "ÉTÉ À LA PLAGE : L’ÂGE D’OR. « ÇA SUFFIT ! » CRIA-T-ELLE. Le prix était de 12 000 € ; il fallut renoncer à la maison, au jardin et à l’étang. « Où est CHLOÉ ? » – « Là-bas, près du château. » Les forêts brûlaient au loin, et la fumée montait, épaisse, jusqu’au ciel où l’on ne voyait plus les étoiles.",
    ],
    "German": [
        "„Wer früh aufsteht, hört die Vögel“, sagte die Großmutter und schüttete den Kaffee in die größte Tasse. Über den Dächern von Köln hing noch Nebel; auf der Straße fuhren nur die Müllwagen. „Schön“, dachte ich, „daß“ schreibt man heute »dass«, aber sie schreibt es weiter wie früher, und niemand stört sich daran.",
        "ÜBER DEN FLUß: Die Fähre ist seit Jahren außer Betrieb, weil der Wasserstand zu oft fällt. Wer hinüber möchte, läuft vier Kilometer bis zur Brücke. Im Winter fährt der Bürgermeister selbst mit dem Schlitten, heißt es; zwölf Säcke Äpfel, ein Körbchen Öl und natürlich die Zeitung hat er dann immer dabei.",
    ],
    "Spanish": [
        "¿Quién dejó abierta la ventana? La señora Peña cerró los postigos y encendió la lámpara. «Mañana», murmuró, «vendrán los niños y habrá que limpiar otra vez». En el rincón dormía un perro pequeño, y el reloj dio las once. ¡Qué silencio! Fuera, el viento traía olor a jazmín y a pan recién hecho.",
        "EL AÑO DE LA SEQUÍA: los ríos bajaban con tan poca agua que se veían las piedras. El 3.º de los hermanos cavó un pozo junto al camino, y a los veintiún días encontró barro. Según él, más abajo había un lago entero; según su mujer, sólo había más trabajo. Al final, ninguno de los dos se equivocó del todo.",
    ],
    "Portuguese": [
        "CANÇÃO DA “MANHÃ”. NÃO É A MANHÃ DE HOJE, É A “IRMÃ” QUE CANTA: «AMANHÃ». As crianças saíram da escola e correram até à estação, onde o comboio das três já apitava. A avó trazia pães, maçãs e um limão; o avô, só a sua opinião. Ninguém chegou atrasado, porque ninguém tinha relógio, e a viagem começou.",
        "REDAÇÃO E OPINIÃO: “SÃO PAULO, A MANHÃ”. Choveu durante três dias e a água entrou no porão. O irmão mais novo pôs os livros em cima da mesa, os sapatos em cima dos livros e o gato em cima de tudo. «Pronto», disse ele, «agora já não há perigo nenhum». A mãe riu-se tanto que se esqueceu da inundação.",
    ],
    "Italian": [
        "«È già tardi», disse il portiere, e chiuse il cancello della città. Più giù, lungo il fiume, i pescatori aspettavano la luna perché così voleva la tradizione. LA VERITÀ, LA LIBERTÀ, LA NECESSITÀ: tre parole scritte sul muro con la vernice rossa. Nessuno sapeva chi le avesse messe lì, né perché proprio lì.",
        "Il caffè costava 1,20 € e veniva servito con un bicchiere d’acqua. «Perché no?», rispondeva sempre il signor Nicolò quando gli chiedevano se voleva lo zucchero. Aveva ottantatré anni, un cappello di feltro e un’idea precisa su come si dovesse fare il ragù: piano, pianissimo, e mai di venerdì.",
    ],
    "Polish": [
        "„ZAŻÓŁĆ” – napisał nauczyciel na tablicy, a dzieci zaśmiały się głośno. KSIĄŻKA, ŹDŹBŁO, „GĘŚ”, ŁÓDŹ: każde słowo miało swój ogonek albo kreskę. Później wszyscy poszli nad rzekę, gdzie rosły wierzby i gdzie w zeszłym roku znaleziono stary, zardzewiały rower bez kół, za to z dzwonkiem, który wciąż działał.",
        "Babcia mówiła, że śnieg pachnie żelazem. „Poczekaj do świtu – dodawała – a usłyszysz, jak pęka lód”. Nie wierzyłem jej, dopóki sam nie stanąłem na brzegu jeziora. Było cicho, tylko gdzieś daleko szczekał pies. Wtedy rozległ się trzask, długi i czysty, jakby ktoś przeciął szkło na dwie równe części.",
    ],
    "Czech": [
        "„Příští vlak jede až ráno,“ řekl výpravčí a zhasl světlo. ŽLUŤOUČKÝ KŮŇ ÚPĚL ĎÁBELSKÉ ÓDY stálo na zdi čekárny, kde jsme strávili celou noc. Venku pršelo, občas zaštěkal pes a z hospody bylo slyšet harmoniku. Úžasné bylo jen to, že nikdo nespěchal. Nad ránem přinesla paní z bufetu čaj a rohlíky.",
        "Děda měl včely a každé z nich prý dal jméno. Když se některá nevrátila, mlčel celý večer. Říkali jsme mu, že jich je šedesát tisíc, ale on jen mávl rukou: „Šedesát tisíc minus jedna.“ V létě voněla zahrada po lípě a medu, v zimě po jablkách, která ležela na půdě mezi starými novinami a křesly.",
    ],
    "Romanian": [
        "Litera „Â” este folosită rar la început de cuvânt, iar „Î” și mai rar. ÎNTÂMPLAREA A FOST „HOTĂRÂTĂ” DE VREME: ploua de trei zile și drumul spre sat era tăiat. Oamenii au așteptat în gară, au împărțit pâinea și brânza, iar un băiat a cântat la fluier până când s-a auzit, în sfârșit, trenul de noapte.",
        "Bunica spunea că fântâna din curte știe tot ce se vorbește în casă. Când eram mici, ne aplecam peste margine și șopteam acolo dorințele noastre. Astăzi fântâna e acoperită cu o scândură, dar dacă pui urechea pe lemn auzi încă apa, mult mai jos decât odinioară, și poate și câteva dintre acele dorințe.",
    ],
    "Turkish": [
        "“HÂLÂ” mı bekliyorsun? diye sordu kapıcı. “KÂĞIT” ve “RÜZGÂR” sözcükleri tabelada eğri duruyordu. İstanbul’da sabahları vapurlar düdük çalar, martılar simit bekler; ışıklar birer birer söner. Çocuklar okula giderken şarkı söylüyordu, yaşlı balıkçı ise ağlarını onarıyor ve hiç kimseye bakmıyordu.",
        "Dedemin dükkânında yalnızca üç şey satılırdı: çay, şeker ve gazete. Müşteri az, sohbet çoktu. Öğleden sonra güneş raflara vurduğunda toz zerreleri görünür, dedem “İşte altınlarımız” derdi. Dükkân kapandı, yerine bir eczane açıldı; ama o köşeden geçerken burnuma hâlâ taze çay kokusu gelir.",
    ],
    "Vietnamese": [
        "CỘNG ĐỒNG “ĐÃ” HỌP HÔM NAY. XÃ HỘI THAY ĐỔI, “XÃ” THÌ CHƯA. Sáng sớm, người bán phở đẩy xe qua ngõ nhỏ, tiếng rao vang lên giữa sương mù. Bà cụ ở cuối phố đã ngồi bên cửa sổ, tay cầm chiếc quạt giấy dù trời còn lạnh. “Chào cháu,” bà nói, “hôm nay cháu lại đi học muộn rồi, phải không?” Cậu bé chỉ cười.",
        # with its accents written apart, as some keyboards and file systems do
        unicodedata.normalize(
            "NFD",
            "Mưa đầu mùa hạ đến bất ngờ. Các em nhỏ chạy ra sân, ngửa cổ đón nước. Ông nội đóng cửa lại rồi lại mở ra, vì ông cũng muốn xem. Nước chảy tràn qua bậc thềm, mang theo lá khô và một chiếc thuyền giấy màu trắng. Đến chiều trời tạnh, cả xóm ngồi trước hiên nhà kể chuyện, và mùi đất ẩm còn đọng mãi.",
        ),
    ],
    "Russian": [
        "«Поезд опаздывает», — сказала дежурная и снова взялась за вязание. На перроне было пусто, только у киоска стоял мужчина с чемоданом и ёлкой под мышкой. Снег шёл третий день подряд; казалось, он засыпал не только город, но и все звуки в нём. — Чай будете? — спросила она вдруг. И мы, конечно, согласились.",
        "В № 7 жил часовщик, который никогда не носил часов. ОБЪЯВЛЕНИЕ НА ДВЕРИ ГЛАСИЛО: «РЕМОНТ — С 9 ДО 18, ПО СОВЕСТИ». Дети приносили ему сломанные будильники, а забирали игрушки: из шестерёнок он делал птиц, жуков и маленьких лошадей. Говорили, что одна из них до сих пор ходит по полке каждую ночь.",
    ],
    "Ukrainian": [
        "«Ні, це не ґанок, а справжня веранда», — пояснював дід, розливаючи узвар. ЦІ СТІНИ ПАМ’ЯТАЮТЬ ЇЇ СМІХ, — було написано на листівці. Їжак під яблунею шурхотів листям, а в селі вже запалювали вогні. Здавалося, що літо триватиме вічно, та перші журавлі вже відлетіли, і в повітрі пахло димом.",
        "Бібліотека містилася в колишній пошті, тож книжки лежали в шухлядках для листів. Щоб знайти роман, треба було знати індекс міста, де народився автор. Бібліотекарка пам’ятала їх усі. «Чернівці», — казала вона й простягала руку до полиці, не дивлячись, — «третій ряд, другий ящик, обережно, там ґвинтик».",
    ],
    "Greek": [
        "«Πότε φεύγει το πλοίο;» ρώτησε η γυναίκα με το καπέλο. Ο λιμενικός κοίταξε τον ουρανό και χαμογέλασε: «Όταν πέσει ο αέρας». Στο καφενείο οι γέροι έπαιζαν τάβλι, τα παιδιά έτρεχαν γύρω από το σιντριβάνι, και κανείς δεν βιαζόταν. Ο ήλιος έδυε πίσω από το νησί σαν νόμισμα που πέφτει αργά στο νερό.",
        "Ἐν ἀρχῇ ἦν ὁ κῆπος, ἔγραφε ὁ παλιὸς δάσκαλος στὸ τετράδιό του, καὶ μέσα στὸν κῆπο μιὰ συκιά. Κάθε καλοκαίρι μετροῦσε τὰ σύκα καὶ κάθε καλοκαίρι ἔβρισκε ἕνα λιγότερο. Δὲν τὸν πείραζε· «τὸ τρώει», ἔλεγε, «ὅποιος τὸ χρειάζεται». Ὕστερα ἔκλεινε τὸ τετράδιο καὶ πήγαινε νὰ ποτίσει τὰ λουλούδια.",
    ],
    "Arabic": [
        "قالت الجدة: «لا تفتح النافذة قبل الفجر». كان البيت صغيرًا، لكنّ حديقته واسعة وفيها شجرة تين قديمة. في كل صباح يأتي بائع الحليب على درّاجته ويطرق الباب ثلاث مرات، ثم يترك الزجاجات ويمضي دون أن ينتظر جوابًا. هل كان يعرف أن أحدًا يراقبه من خلف الستارة؟ لم يسأله أحد عن ذلك قط.",
        "وصل القطار متأخرًا ٤٥ دقيقة، فجلسنا على الرصيف نشرب الشاي بالنعناع. قرأ أخي اللافتة: \u200fمحطة (A-12)\u200f، ثم ضحك. كانت المدينة هادئة، والمصابيح تضيء الطريق المؤدي إلى البحر. مرّت امرأة تحمل سلة من البرتقال، فأعطتنا واحدة لكل منا، وقالت إن الطريق أطول مما نظن، وإن الليل أقصر.",
    ],
    "Persian": [
        "می‌خواهم به خانه‌ی مادربزرگ بروم؛ آنجا که باغ‌ها پر از انارند. نمی‌دانم قطار کی می‌رسد، اما کتاب‌هایم را آورده‌ام. پیرمردی کنار پنجره نشسته بود و روزنامه می‌خواند. گفت: «جوان، عجله نکن، راه خودش می‌رود». بیرون برف می‌بارید و کوه‌ها کم‌کم در مه گم می‌شدند، مثل خاطره‌های کودکی ما.",
        "در کوچه‌ی ما نانوایی کوچکی بود که بوی نانش تا سر خیابان می‌رفت. بچه‌ها صف می‌کشیدند و نوبت‌هایشان را با هم عوض می‌کردند. شاطر همیشه یک نان اضافه می‌پخت و می‌گفت: «این برای کسی‌ست که هنوز نیامده». هیچ‌وقت ندیدیم چه کسی آن را می‌برد، ولی هر شب که می‌گذشتیم، نان دیگر آنجا نبود.",
    ],
    "Hebrew": [
        "בְּרֵאשִׁית הָיָה הַגַּן קָטָן, וְרַק עֵץ אֶחָד צָמַח בּוֹ. הַיְלָדִים קָרְאוּ לוֹ ״הַסָּבָא״ כִּי עֲנָפָיו רָעֲדוּ בָּרוּחַ. בְּכָל שַׁבָּת יָשְׁבוּ תַּחְתָּיו וְסִפְּרוּ סִפּוּרִים עַל אֳנִיּוֹת וְעַל מִדְבָּר, עַד שֶׁהַשֶּׁמֶשׁ שָׁקְעָה. אָז הָלְכוּ הַבַּיְתָה בְּשֶׁקֶט, כְּדֵי לֹא לְהָעִיר אֶת הַצִּפֳּרִים.",
        # presentation forms, which NFC takes apart: shin with dots, bet with dagesh
        "\ufb2aלום לכולם, כתב המורה על הלוח, ו\ufb31צד צייר \ufb2aמש קטנה. התלמידים העתיקו למחברות את המילים בזו אחר זו. בחוץ ירד גשם, ועל אדן החלון ישבה יונה רטובה. ״למה היא לא עפה?״ שאל דני. ״כי גם היא רוצה ללמוד,״ ענתה לו אחותו, וכולם צחקו. אחר כך פתחו את החלון והניחו שם כמה פירורי לחם בשבילה.",
    ],
    "Hindi": [
        # nukta letters that NFC takes apart: U+0958 to U+095F
        "\u0958लम मेज़ पर रखी थी और का\u095a\u095b हवा में उड़ रहे थे। दादी ने कहा, “प\u095dो, नहीं तो रात हो जाएगी।” बच्चे पेड़ के नीचे बैठकर कहानियाँ सुनते रहे। नदी के उस पार मेला लगा था, जहाँ से ढोल की आवाज़ आती थी। क्\u200dया हम कल वहाँ जाएँगे? पिताजी मुस्कुराए और बोले, पहले बारिश रुकने दो, फिर देखेंगे।",
        "गाँव का डाकिया हर चिट्ठी को पहले सूँघता था, फिर पता पढ़ता था। उसका कहना था कि ख़ुशी की ख़बर से गुड़ जैसी महक आती है। लोग हँसते थे, पर जब वह किसी के दरवाज़े पर रुककर मुस्कुराता, तो सबकी साँस थम जाती। एक दिन वह हमारे घर आया, बहुत देर तक खड़ा रहा और बिना कुछ कहे एक नीला लिफ़ाफ़ा दे गया।",
    ],
    "Bengali": [
        # U+09DC, U+09DD and U+09DF, which NFC takes apart
        "বা\u09dcির পাশে একটা পুকুর ছিল, তার ধারে বুড়ো আমগাছ। আষা\u09dd মাসে বৃষ্টি নামলে মাছগুলো লাফিয়ে উঠত, আর আমরা দৌ\u09dcে যেতাম জাল নিয়ে। ঠাকুমা বলতেন, “সম\u09df হলে সব মাছ নিজেই আসে।” সন্ধ্যাবেলা হারিকেনের আলো\u09df গল্প শুনতে শুনতে ঘুমিয়ে পড়তাম, আর স্বপ্নে দেখতাম সেই পুকুরটাই সমুদ্র হয়ে গেছে।",
        "শহরের শেষ ট্রামটা রাত এগারোটায় ছাড়ে। চালক কাকা প্রতিদিন একই গান গুনগুন করেন, আর যাত্রীরা জানে কোন মোড়ে কোন লাইনটা আসবে। একদিন তিনি গান করেননি; সেদিন ট্রামে কেউ কথা বলেনি। পরের দিন আবার গান শোনা গেল, একটু নিচু গলায়, আর জানালার পাশে বসা মেয়েটা আস্তে করে হাততালি দিল।",
    ],
    "Tamil": [
        "காலையில் எழுந்ததும் தாத்தா வானொலியைத் திருப்புவார். செய்திகள் முடிந்ததும் பழைய பாடல்கள் ஒலிக்கும். அம்மா அடுக்களையில் தோசை வார்க்க, நாங்கள் முற்றத்தில் பூப்பறிப்போம். மழைக்காலத்தில் ஓட்டுக்கூரையில் விழும் துளிகளின் ஓசை இன்னும் நினைவிருக்கிறது; அந்த வீடு இப்போது இல்லை என்றாலும்.",
        "கடற்கரையில் ஒரு முதியவர் தினமும் சிப்பிகளை எண்ணிக்கொண்டிருப்பார். ஏன் என்று கேட்டால், “கடல் தன் கணக்கை மறந்துவிடக் கூடாது அல்லவா?” என்பார். குழந்தைகள் அவருக்கு உதவுவார்கள், சில நேரம் எண்களைத் தவறாகச் சொல்லிச் சிரிப்பார்கள். அவரும் சிரித்துக்கொண்டே மீண்டும் ஒன்றிலிருந்து தொடங்குவார்.",
    ],
    "Thai": [
        "ตอนเช้าตรู่ เรือข้ามฟากจอดอยู่ที่ท่าน้ำ แม่ค้าขายขนมครกจุดเตาถ่านแล้วนั่งรอลูกค้า เด็กนักเรียนสองคนวิ่งมาซื้อคนละ ๒๐ บาท ลุงคนขับเรือหัวเราะแล้วบอกว่าไม่ต้องรีบ น้ำยังขึ้นไม่สุด ฝนเมื่อคืนทำให้แม่น้ำขุ่นแต่ลมเย็นสบาย ทุกคนจึงยืนดูนกกระยางบินข้ามไปอีกฝั่งหนึ่งอย่างเงียบ ๆ",
        # with zero-width spaces between words, as some programs write it
        "ห้องสมุด\u200bของ\u200bหมู่บ้าน\u200bอยู่\u200bใน\u200bโบกี้\u200bรถไฟ\u200bเก่า หนังสือ\u200bเรียง\u200bตาม\u200bสี\u200bของ\u200bปก ไม่ใช่\u200bตาม\u200bชื่อ\u200bผู้แต่ง คุณครู\u200bบอก\u200bว่า\u200bเด็ก\u200bจำ\u200bสี\u200bได้\u200bง่าย\u200bกว่า วันหนึ่ง\u200bมี\u200bคน\u200bเอา\u200bหนังสือ\u200bสีขาว\u200bทั้งหมด\u200bไป แล้ว\u200bคืน\u200bมา\u200bพร้อม\u200bภาพวาด\u200bใน\u200bทุก\u200bหน้า ไม่มี\u200bใคร\u200bรู้\u200bว่า\u200bเป็น\u200bใคร",
    ],
    "Lao": [
        "ຕອນເຊົ້າ ແມ່ຄ້າຂາຍເຂົ້າຈີ່ຢູ່ແຄມຖະໜົນ ພໍ່ເຖົ້ານັ່ງດື່ມກາເຟແລະອ່ານໜັງສືພິມ ເດັກນ້ອຍຂີ່ລົດຖີບໄປໂຮງຮຽນ ນ້ຳຂອງໄຫຼຊ້າໆ ແລະໝອກຍັງບໍ່ທັນຈາງ ທຸກຄົນເວົ້າຄ່ອຍໆ ຄືກັບວ່າບໍ່ຢາກປຸກເມືອງໃຫ້ຕື່ນ ແຕ່ໄກໆໄດ້ຍິນສຽງກອງຈາກວັດ",
    ],
    "Khmer": [
        "ព្រឹក\u200bនេះ\u200bមាន\u200bអ័ព្ទ\u200bនៅ\u200bលើ\u200bទន្លេ។ អ្នក\u200bនេសាទ\u200bរៀបចំ\u200bសំណាញ់\u200bរបស់\u200bគាត់ ហើយ\u200bក្មេងៗ\u200bរត់\u200bទៅ\u200bសាលា។ យាយ\u200bលក់\u200bនំបញ្ចុក\u200bញញឹម\u200bដាក់\u200bមនុស្ស\u200bគ្រប់គ្នា។ នៅ\u200bពេល\u200bព្រះអាទិត្យ\u200bរះ អ័ព្ទ\u200bក៏\u200bរលាយ\u200bបាត់ ហើយ\u200bទីក្រុង\u200bចាប់ផ្ដើម\u200bថ្ងៃ\u200bថ្មី\u200bម្តង\u200bទៀត។",
    ],
    "Burmese": [
        "မနက်စောစောမှာ လက်ဖက်ရည်ဆိုင်လေး ဖွင့်လိုက်သည်။ အဘိုးက သတင်းစာဖတ်ရင်း ပြုံးနေသည်။ ကလေးများ ကျောင်းသွားရန် စက်ဘီးစီးကြသည်။ မြစ်ကမ်းနားတွင် လှေသမားက ခရီးသည်များကို စောင့်နေ၏။ မိုးရွာတော့မည်ဟု အဘွားက ပြောသော်လည်း မည်သူမျှ ထီးမယူခဲ့ကြပေ။ ညနေကျတော့ အားလုံး မိုးရေထဲ ပြန်လာကြသည်။",
    ],
    "Tibetan": [
        "ཞོགས་པ་སྔ་པོར་ཨ་ཕས་ར་ལུག་རྣམས་རི་ལ་འདེད་ཀྱིན་འདུག །ཁྱི་ནག་པོ་དེ་ཁོང་གི་རྗེས་སུ་རྒྱུག་གི་འདུག །ཨ་མས་ཇ་སྐོལ་ནས་བུ་ཕྲུག་ཚོར་སྒུག་བསྡད་འདུག །ཆུ་བོའི་འགྲམ་དུ་མེ་ཏོག་སེར་པོ་མང་པོ་སྐྱེས་ཡོད། ཉི་མ་ཤར་བའི་སྐབས་སུ་གངས་རི་དམར་པོར་གྱུར་སོང་། །དགོང་མོ་ཚང་མ་ཁྱིམ་དུ་ལོག་པ་དང་ཨ་ཁུས་སྒྲུང་བཤད་པ་རེད། །",
    ],
    "Chinese": [
        "清晨六点，码头上还没有什么人。卖豆浆的老王把炉子点着，对路过的船夫说：“今天风大，早点回来。”船夫笑了笑，没有答话。雾从江面慢慢升起来，远处的灯塔像一根快要熄灭的火柴。等到太阳出来，雾就散了，孩子们背着书包跑过石桥，桥下的水比昨天又高了一寸。",
        "图书馆的钥匙只有三把：一把在馆长手里，一把挂在门卫的墙上，还有一把谁也说不清楚在哪里。有人说是借给了一位研究《山海经》的教授，也有人说早就掉进了后院的井里。直到去年冬天清理水井，工人们捞上来一个铁盒，打开一看，里面装着四把钥匙和一张没有归还的借书证。",
    ],
    "Chinese, traditional": [
        # U+F9xx and U+FAxx: compatibility ideographs, which every Unicode form replaces
        "老街的藥\ufa19鋪開了一百二十年，招牌上的\uf9dd字早已褪色。掌櫃說：「藥方可以改，秤不能改。」每到立冬，隊伍從門口一直排到廟前，人人手裡提著一只陶罐。今年雨水多，當歸漲了價，他卻照舊收去年的錢，只在帳本上寫下一行小字：餘者待春。\uf914聲笑語之中，爐火燒到了深夜。",
    ],
    "Japanese": [
        "朝の港には誰もいなかった。「風が強いから、早く戻っておいで」と豆腐屋のおじいさんが言うと、漁師は笑って手を振った。霧がゆっくりと川面から立ちのぼり、遠くの灯台は消えかけたマッチのように見える。やがて日が昇り、子どもたちがランドセルを揺らしながら石橋を渡っていった。",
        "ＪＲの駅前にある\ufa10屋という喫茶店で、\ufa11さんは毎朝ﾓｰﾆﾝｸﾞを注文する。値段は４５０円。新聞を読み、珈琲を飲み、きっかり八時に店を出る。ある日、彼は来なかった。店主は席を空けたまま待ち続け、夕方になってから「本日貸切」の札を静かに裏返した。翌朝、\ufa11さんは何事もなかったように現れた。",
    ],
    "Korean": [
        "새벽 다섯 시, 시장 골목에 불이 하나둘 켜졌다. “오늘은 바람이 차네.” 할머니는 혼잣말을 하며 두부를 썰었다. 첫 손님은 언제나 신문 배달부였다. 그는 말없이 동전을 내려놓고 따뜻한 두유를 한 모금 마신 뒤 다시 자전거에 올랐다. 골목 끝에서 고양이가 하품을 했고, 멀리서 첫차가 지나가는 소리가 들렸다. 할머니는 의자를 하나 더 내놓았다. 오늘따라 손님이 많을 것 같은 날이었다. 김이 오르는 솥 옆에서 라디오가 작게 노래를 불렀다.",
    ],
    "Georgian": [
        "დილით ადრე ზღვისპირას არავინ იყო. მოხუცი მებადური ბადეს კერავდა და ჩუმად მღეროდა. „დღეს ქარი ძლიერია“, უთხრა მან გამვლელ ბიჭს, „ხვალ წავიდეთ“. ბიჭმა ქუდი მოიხადა და გაიღიმა. მთებზე თოვლი ჯერ კიდევ არ დამდნარიყო, ხოლო ბაღებში ატამი უკვე ყვაოდა. სახლიდან ახალი პურის სუნი მოდიოდა, და ზარმა რვაჯერ დარეკა.",
    ],
    "Amharic": [
        "ጠዋት በማለዳ ገበያው ጸጥ ያለ ነበር። አያቴ ቡናውን እያፈላች ታሪክ ትነግረን ነበር። “ዛሬ ነፋሱ ከባድ ነው” አለች፣ “ልጆቹ ቶሎ ይመለሱ።” ከወንዙ ማዶ የፍየሎች ድምፅ ይሰማል። ፀሐይ ስትወጣ ጉሙ ቀስ እያለ ጠፋ፤ ተማሪዎቹም ደብተራቸውን ይዘው ድልድዩን ተሻገሩ። ማታ ሁላችንም በእሳቱ ዙሪያ ተቀምጠን ያንን ታሪክ እንደገና ሰማን። አያቴ ግን መጨረሻውን በየቀኑ ትቀይረው ነበር፤ ለምን እንደሆነ አልነገረችንም።",
    ],
    "emoji": [
        "The family chat 👩‍👩‍👧‍👦 has been busy all day: 🏳️‍🌈 flags, 👍🏽 thumbs, ❤️‍🔥 hearts, 1️⃣ 2️⃣ 3️⃣ and 🇧🇷🇻🇳. Uncle Bo only sends ¯\\_(ツ)_/¯ or (╯°□°)╯︵ ┻━┻, and nobody minds ☕︎. When the baby was born 👶🏿 the phone rang ☎️ for an hour; then came forty pictures, each with the same caption, “finally ✨”, and 𝒶 𝓈𝒾𝑔𝓃𝒶𝓉𝓊𝓇ℯ ½ × ²√π ≈ ℃.",
    ],
    "code": [
        'def größe(wert: float) -> str:\n\t"""Gibt „wert“ in °C aus – mit NBSP (\xa0) davor."""\n\treturn f"{wert:.1f}\xa0°C"  # §3, © 2024, naïve ½\n\n\nBOX = "┌──┐\\n│░▒│\\n└──┘"\nARROWS = ["←", "→", "⇒", "≤", "≠"]\n\f\nclass Früh(Exception):\n    pass  # µs, 2×3, ±1, ¬p ∨ q; “smart” quotes and ‘ticks’\n    # Â is a letter, Ã too, and \\xc3\\xa9 is é\n',
    ],
}
"""Documents of each language, at least 200 characters long as lengths are counted."""
