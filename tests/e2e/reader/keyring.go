package main

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
)

const keyringLimit = 262144

var (
	jobForm     = regexp.MustCompile(`^[-0-9a-z.]+/[-0-9a-z.]+$`)
	idForm      = regexp.MustCompile(`^[0-9a-f]{16}$`)
	kekForm     = regexp.MustCompile(`^[0-9A-Za-z._:/@-]+$`)
	createdForm = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$`)
	macForm     = regexp.MustCompile(`^[0-9a-f]{64}$`)
	wrappedForm = regexp.MustCompile(`^([0-9a-f]{2})+$`)
)

type dataKey struct {
	id  string
	key []byte
}

// keyring has the primary key first, then the others in their order.
type keyring struct {
	job  string
	keys []dataKey
}

func (r *keyring) ids() []string {
	var ids []string
	for _, key := range r.keys {
		ids = append(ids, key.id)
	}
	return ids
}

type keks map[string][]byte

func mac(key []byte, text string) []byte {
	hash := hmac.New(sha256.New, key)
	hash.Write([]byte(text))
	return hash.Sum(nil)
}

func keyID(key []byte) string {
	return hex.EncodeToString(mac(key, "dstj key id v1")[:8])
}

func derived(key []byte, purpose string) []byte {
	return must(hkdf.Key(sha256.New, key, nil, "dstj/"+purpose, 32))
}

func gcm(key []byte) cipher.AEAD {
	return must(cipher.NewGCM(must(aes.NewCipher(key))))
}

func readKeks(paths []string) keks {
	own := keks{}
	for _, path := range paths {
		key := must(os.ReadFile(path))
		if len(key) != 32 {
			refuse("%s has %d bytes, a key has 32", path, len(key))
		}
		own[keyID(key)] = key
	}
	return own
}

func openKeyring(path, job string, own keks) *keyring {
	text := readWhole(path)
	if len(text) > keyringLimit {
		refuse("%s is longer than %d bytes", path, keyringLimit)
	}
	d := parseFormat(path, text, "dstj-keyring/1", "dstj-keyring/2")
	if job != "" && d.text("job") != job {
		refuse("%s is of the job %q, not of %q", path, d.text("job"), job)
	}
	if d.text("format") == "dstj-keyring/1" {
		return openFormat1(d, own)
	}
	return openFormat2(d, own)
}

// readWhole reads again where the file was replaced meanwhile.
func readWhole(path string) []byte {
	for {
		before := must(os.Lstat(path))
		text := must(os.ReadFile(path))
		if os.SameFile(before, must(os.Lstat(path))) {
			return text
		}
	}
}

func openFormat1(d document, own keks) *keyring {
	checkForm1(d)
	ring := &keyring{job: d.text("job")}
	for _, entry := range d.objects("keys") {
		kek, ok := own[entry.text("kek")]
		if !ok {
			refuse("%s needs the KEK %s", d.name, entry.text("kek"))
		}
		ring.keys = append(ring.keys, checked(entry, unwrapKWP(d.name, kek, unhex(entry, "wrapped"))))
	}
	return ring.ordered(d)
}

func checkForm1(d document) {
	checkHead(d)
	var ids []string
	for _, entry := range atMost64(d, "keys") {
		ids = append(ids, entry.matched("id", idForm, 16))
		entry.matched("kek", idForm, 16)
		entry.matched("created", createdForm, 20)
		entry.matched("wrapped", wrappedForm, 8192)
	}
	distinct(d, ids)
}

func openFormat2(d document, own keks) *keyring {
	checkForm(d)
	ring := &keyring{job: d.text("job")}
	kek, wrapped := chosen(d, own)
	for _, entry := range d.objects("keys") {
		key := checked(entry, unwrapGCM(kek, unhex(wrapped, entry.text("id")), ring.job, entry.text("id")))
		if hex.EncodeToString(derived(key.key, "commitment")) != entry.text("commitment") {
			refuse("%s: the key %s is not the one committed to", d.name, key.id)
		}
		ring.keys = append(ring.keys, key)
	}
	ring.ordered(d)
	checkMAC(d, ring.keys[0].key)
	return ring
}

func chosen(d document, own keks) ([]byte, document) {
	var named []string
	for _, recipient := range d.objects("recipients") {
		if kek, ok := own[recipient.text("kek")]; ok {
			return kek, recipient.object("wrapped")
		}
		named = append(named, recipient.text("kek"))
	}
	refuse("%s needs one of the KEKs %s", d.name, strings.Join(named, ", "))
	return nil, document{}
}

func checkForm(d document) {
	d.exactly("format", "job", "primary", "keys", "recipients", "mac")
	checkHead(d)
	d.matched("mac", macForm, 64)
	checkRecipients(d, checkKeys(d))
}

func checkHead(d document) {
	d.matched("job", jobForm, 512)
	if primary, named := d.fields["primary"]; named && primary == nil {
		refuse("%s was shredded", d.name)
	}
	d.matched("primary", idForm, 16)
}

func checkKeys(d document) []string {
	var ids []string
	for _, entry := range atMost64(d, "keys") {
		entry.exactly("id", "created", "commitment")
		entry.matched("created", createdForm, 20)
		entry.matched("commitment", macForm, 64)
		ids = append(ids, entry.matched("id", idForm, 16))
	}
	return distinct(d, ids)
}

func checkRecipients(d document, ids []string) {
	var names []string
	for _, recipient := range atMost64(d, "recipients") {
		recipient.exactly("kek", "created", "wrapped")
		recipient.matched("created", createdForm, 20)
		names = append(names, recipient.matched("kek", kekForm, 200))
		wrapped := recipient.object("wrapped")
		wrapped.exactly(slices.Clone(ids)...)
		for id := range wrapped.fields {
			wrapped.matched(id, wrappedForm, 8192)
		}
	}
	distinct(d, names)
}

func atMost64(d document, name string) []document {
	all := d.objects(name)
	if len(all) == 0 || len(all) > 64 {
		refuse("%s has %d %s", d.name, len(all), name)
	}
	return all
}

func distinct(d document, names []string) []string {
	sorted := slices.Sorted(slices.Values(names))
	if len(slices.Compact(sorted)) != len(names) {
		refuse("%s has an entry twice", d.name)
	}
	return names
}

func checkMAC(d document, primary []byte) {
	body := maps.Clone(d.fields)
	delete(body, "mac")
	found := mac(derived(primary, "keyring mac"), string(must(json.Marshal(body))))
	if hex.EncodeToString(found) != d.text("mac") {
		refuse("%s was changed: its MAC is another", d.name)
	}
}

func checked(entry document, key []byte) dataKey {
	if keyID(key) != entry.text("id") {
		refuse("%s: the key %s is another one", entry.name, entry.text("id"))
	}
	return dataKey{entry.text("id"), key}
}

func (r *keyring) ordered(d document) *keyring {
	first := slices.IndexFunc(r.keys, func(key dataKey) bool { return key.id == d.text("primary") })
	if first < 0 {
		refuse("%s has no primary key", d.name)
	}
	primary := r.keys[first]
	r.keys = slices.Insert(slices.Delete(r.keys, first, first+1), 0, primary)
	return r
}

func unhex(d document, name string) []byte {
	bytes, err := hex.DecodeString(d.text(name))
	if err != nil {
		refuse("%s: %q is not hexadecimal", d.name, name)
	}
	return bytes
}

func unwrapGCM(kek, wrapped []byte, job, id string) []byte {
	if len(wrapped) != 60 {
		refuse("the wrapped key %s has %d bytes, not 60", id, len(wrapped))
	}
	context := "dstj-keyring/2\n" + job + "\n" + id
	key, err := gcm(derived(kek, "wrap")).Open(nil, wrapped[:12], wrapped[12:], []byte(context))
	if err != nil {
		refuse("the KEK %s does not unwrap the key %s of the job %s", keyID(kek), id, job)
	}
	return key
}

// unwrapKWP undoes RFC 5649 for a key of 32 bytes, which needs no padding.
func unwrapKWP(name string, kek, wrapped []byte) []byte {
	if len(wrapped) != 40 {
		refuse("%s: a wrapped key has %d bytes, not 40", name, len(wrapped))
	}
	block := must(aes.NewCipher(kek))
	check, rows := slices.Clone(wrapped[:8]), slices.Clone(wrapped[8:])
	for turn := 24; turn > 0; turn-- {
		row := rows[(turn-1)%4*8:][:8]
		count := binary.BigEndian.Uint64(check) ^ uint64(turn)
		both := append(binary.BigEndian.AppendUint64(nil, count), row...)
		block.Decrypt(both, both)
		copy(check, both[:8])
		copy(row, both[8:])
	}
	if string(check) != "\xa6\x59\x59\xa6\x00\x00\x00\x20" {
		refuse("%s: the KEK %s does not unwrap a key", name, keyID(kek))
	}
	return rows
}
