package main

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
)

var shardForm = regexp.MustCompile(`^(train|validation)-\d{5,}\.rows$`)

// held is what a directory of prepared data holds, by names in it.
type held map[string][]byte

func (w *work) prepared() {
	for _, name := range w.directories("prepared") {
		switch {
		case name == "runs":
			w.pointers()
		case strings.HasPrefix(name, "model-"):
			w.baseModel("prepared/" + name)
		default:
			w.preparedData("prepared/" + name)
		}
	}
}

func (w *work) readDirectory(directory string) (held, map[string]opened, lines) {
	content, files, told := held{}, map[string]opened{}, lines{}
	for _, onDisk := range w.names(directory) {
		name, sealed := strings.CutSuffix(onDisk, ".sealed")
		if sealed != (w.ring != nil) {
			refuse("%s is in the clear where files are sealed, or the other way round", onDisk)
		}
		found, text := w.read(name, inDirectory("data", name))
		inside := strings.TrimPrefix(name, directory+"/")
		content[inside], files[inside] = text, found
		told.file(name, found)
	}
	return content, files, told
}

func (w *work) pointers() {
	for _, run := range w.directories("prepared/runs") {
		var told lines
		name := "prepared/runs/" + run + "/pointer.json"
		found, text := w.read(name, inDirectory("data", name))
		d := parseObject(name, text)
		if d.text("data"); d.text("runId") != run {
			refuse("%s is of the run %q", name, d.text("runId"))
		}
		told.file(name, found)
		told.tell()
	}
}

func (w *work) baseModel(directory string) {
	content, _, told := w.readDirectory(directory)
	source := parseFormat(directory+"/source.json", content.need(directory, "source.json"), "dstj-model/1")
	parseObject(directory+"/config.json", content.need(directory, "config.json"))
	for _, name := range field[[]any](source, "weights") {
		content.need(directory, fmt.Sprint(name))
	}
	told.tell()
}

func (h held) need(directory, name string) []byte {
	text, found := h[name]
	if !found {
		refuse("%s/%s is missing", directory, name)
	}
	return text
}

func (w *work) preparedData(directory string) {
	content, files, told := w.readDirectory(directory)
	d := parseFormat(directory+"/manifest.json", content.need(directory, "manifest.json"), "dstj-data/1")
	if digest := d.text("digest"); w.nameOf(digest) != path.Base(directory) {
		refuse("%s is not of this directory", d.name)
	}
	shards := d.object("shards")
	for _, split := range []string{"train", "validation"} {
		rows := shardRows(content, files, d, shards.objects(split))
		told.columns(directory+"/"+split, columnsOf(d, rows))
		if order, found := content["train.order"]; found && split == "train" {
			checkOrder(directory+"/train.order", order, len(rows))
		}
	}
	checkRest(directory, content, d)
	told.tell()
}

// nameOf is the name of what has this digest: in the clear the digest itself.
func (w *work) nameOf(digest string) string {
	if w.ring == nil {
		return digest
	}
	key := must(hkdf.Key(sha256.New, w.ring.keys[0].key, nil, "dstj/names v1", 32))
	return hex.EncodeToString(mac(key, digest)[:20])
}

func shardRows(content held, files map[string]opened, d document, shards []document) [][]byte {
	var rows [][]byte
	size := max(1, rowSize(d))
	for _, shard := range shards {
		name := shard.matched("name", shardForm, 80)
		text := content.need(d.name, name)
		files[name].expectDigest(name, shard.text("digest"))
		if int64(len(text)) != shard.number("rows")*size {
			refuse("%s has %d bytes, not %d rows of %d", name, len(text), shard.number("rows"), size)
		}
		rows = slices.AppendSeq(rows, slices.Chunk(text, int(size)))
	}
	return rows
}

func rowSize(d document) int64 {
	if d.fields["sequence_length"] == nil {
		return elements(d.name, []int64{d.number("height"), d.number("width"), d.number("channels")}) + 4
	}
	tokens := d.number("sequence_length")
	return elements(d.name, []int64{tokens, tokenSize(d)}) + (tokens+7)/8*2
}

func tokenSize(d document) int64 {
	if d.number("vocab_size") <= 65536 {
		return 2
	}
	return 4
}

// columnsOf are the decoded rows: tokens and classes as 4 bytes, flags as one.
func columnsOf(d document, rows [][]byte) map[string][]byte {
	columns := map[string][]byte{}
	for _, row := range rows {
		if d.fields["sequence_length"] == nil {
			columns["pixels"] = append(columns["pixels"], row[:len(row)-4]...)
			columns["classes"] = append(columns["classes"], row[len(row)-4:]...)
			continue
		}
		length, bits := int(d.number("sequence_length")), row[d.number("sequence_length")*tokenSize(d):]
		columns["tokens"] = append(columns["tokens"], widened(row[:len(row)-len(bits)], int(tokenSize(d)))...)
		columns["learned"] = append(columns["learned"], flags(bits[:len(bits)/2], length)...)
		columns["begins"] = append(columns["begins"], flags(bits[len(bits)/2:], length)...)
	}
	return columns
}

func widened(tokens []byte, size int) []byte {
	var wide []byte
	for token := range slices.Chunk(tokens, size) {
		wide = append(wide, append(bytes.Clone(token), make([]byte, 4-size)...)...)
	}
	return wide
}

func flags(bits []byte, length int) []byte {
	all := make([]byte, length)
	for i := range all {
		all[i] = bits[i/8] >> (7 - i%8) & 1
	}
	return all
}

func (l *lines) columns(name string, columns map[string][]byte) {
	for _, column := range []string{"tokens", "learned", "begins", "pixels", "classes"} {
		if data, found := columns[column]; found {
			l.add(name+"#"+column, int64(len(data)), tensor{data: data}.digest())
		}
	}
}

func checkOrder(name string, text []byte, rows int) {
	seen := make([]bool, rows)
	if len(text) != 8*rows {
		refuse("%s has %d bytes for %d rows", name, len(text), rows)
	}
	for number := range slices.Chunk(text, 8) {
		row := binary.LittleEndian.Uint64(number)
		if row >= uint64(rows) || seen[row] {
			refuse("%s does not name every row once", name)
		}
		seen[row] = true
	}
}

// checkRest looks at what no manifest lists: the list that a task always has, and the tokenizer.
func checkRest(directory string, content held, d document) {
	name := "classes.json"
	if d.fields["sequence_length"] != nil {
		name = "prompts.json"
	}
	if _, list := parse(name, content.need(directory, name)).([]any); !list {
		refuse("%s/%s is no list", directory, name)
	}
	for _, name := range []string{"tokenizer.json", "tokenizer_config.json"} {
		if text, found := content[name]; found {
			parseObject(directory+"/"+name, text)
		}
	}
}
