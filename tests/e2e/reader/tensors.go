package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

var elementSizes = map[string]int64{
	"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1,
}

// block is a tensor of one file: a whole one, or a part of one.
type block struct {
	dtype  string
	shape  []int64
	offset []int64
	whole  []int64
	data   []byte
	begin  int64
}

type tensor struct {
	place string
	data  []byte
}

func (t tensor) digest() string {
	digest := sha256.Sum256(t.data)
	return hex.EncodeToString(digest[:])
}

func elements(name string, shape []int64) int64 {
	count := int64(1)
	for _, length := range shape {
		if length > 0 && count > math.MaxInt64/16/length {
			refuse("%s has the shape %v, which is too large", name, shape)
		}
		count *= length
	}
	return count
}

func readSafetensors(name string, text []byte) map[string]block {
	if len(text) < 8 || binary.LittleEndian.Uint64(text) > uint64(len(text)-8) {
		refuse("%s is cut off", name)
	}
	end := 8 + binary.LittleEndian.Uint64(text)
	header := parseObject(name, text[8:end])
	blocks := map[string]block{}
	for key := range header.fields {
		if key != "__metadata__" {
			blocks[key] = readBlock(name+": "+key, header.object(key), text[end:])
		}
	}
	checkGaps(name, blocks, int64(len(text[end:])))
	return blocks
}

func readBlock(name string, entry document, data []byte) block {
	b := block{dtype: entry.text("dtype"), shape: entry.numbers("shape")}
	size, known := elementSizes[b.dtype]
	offsets := entry.numbers("data_offsets")
	if !known || len(offsets) != 2 || offsets[0] > offsets[1] || offsets[1] > int64(len(data)) {
		refuse("%s leaves its file, or has a dtype that is not known", name)
	}
	if offsets[1]-offsets[0] != elements(name, b.shape)*size {
		refuse("%s has %d bytes, which its shape %v does not fill", name, offsets[1]-offsets[0], b.shape)
	}
	b.begin, b.data = offsets[0], data[offsets[0]:offsets[1]]
	return b
}

func checkGaps(name string, blocks map[string]block, size int64) {
	order := slices.SortedFunc(maps.Values(blocks), func(a, b block) int {
		return cmp.Or(cmp.Compare(a.begin, b.begin), cmp.Compare(len(a.data), len(b.data)))
	})
	end := int64(0)
	for _, b := range order {
		if b.begin != end {
			refuse("%s has a gap or an overlap at %d", name, end)
		}
		end += int64(len(b.data))
	}
	if end != size {
		refuse("%s holds bytes of no tensor", name)
	}
}

// assembled puts the blocks of each tensor of a manifest together.
func assembled(manifest document, files map[string]map[string]block) []tensor {
	parts, order := map[string][]block{}, []string{}
	for _, entry := range manifest.objects("tensors") {
		place := placeOf(entry)
		if parts[place] == nil {
			order = append(order, place)
		}
		parts[place] = append(parts[place], listed(entry, files))
	}
	var all []tensor
	for _, place := range order {
		all = append(all, tensor{place, joined(place, parts[place])})
	}
	return all
}

// placeOf tells the tensors below rng apart, which every rank has of its own.
func placeOf(entry document) string {
	if name := entry.text("name"); !strings.HasPrefix(name, "rng/") {
		return "#" + name
	}
	return "/" + strings.TrimSuffix(entry.text("file"), ".safetensors") + "#" + entry.text("name")
}

func listed(entry document, files map[string]map[string]block) block {
	name, inFile := entry.text("name"), entry.text("name")
	shape := entry.numbers("shape")
	offset, whole := make([]int64, len(shape)), shape
	if entry.fields["offset"] != nil {
		offset, whole = entry.numbers("offset"), entry.numbers("whole")
		inFile += "@" + strings.Trim(strings.ReplaceAll(fmt.Sprint(offset), " ", ","), "[]")
	}
	b, found := files[entry.text("file")][inFile]
	if !found || b.dtype != entry.text("dtype") || !slices.Equal(b.shape, shape) {
		refuse("%s is not in %s as the manifest says", name, entry.text("file"))
	}
	b.offset, b.whole = offset, whole
	b.checkBounds(name)
	return b
}

func (b block) checkBounds(name string) {
	if len(b.offset) != len(b.shape) || len(b.whole) != len(b.shape) {
		refuse("%s has a block of another number of dimensions", name)
	}
	for k := range b.shape {
		if b.offset[k] > b.whole[k] || b.shape[k] > b.whole[k]-b.offset[k] {
			refuse("%s has a block outside of it", name)
		}
	}
}

// joined first counts, so that a shape alone takes no memory: blocks that do not
// overlap and have as many elements as the whole fill it.
func joined(name string, blocks []block) []byte {
	first, held := blocks[0], int64(0)
	for _, b := range blocks {
		if b.dtype != first.dtype || !slices.Equal(b.whole, first.whole) {
			refuse("%s has blocks of different tensors", name)
		}
		held += elements(name, b.shape)
	}
	if held != elements(name, first.whole) {
		refuse("%s is not filled by its blocks", name)
	}
	data, filled := make([]byte, held*elementSizes[first.dtype]), make([]bool, held)
	for _, b := range blocks {
		b.copyTo(name, data, filled)
	}
	return data
}

func (b block) copyTo(name string, data []byte, filled []bool) {
	width := elementSizes[b.dtype]
	for index := range elements(name, b.shape) {
		at := b.position(index)
		if filled[at] {
			refuse("%s has blocks that overlap", name)
		}
		filled[at] = true
		copy(data[at*width:][:width], b.data[index*width:])
	}
}

// position is where an element of the block stands in the whole, row by row.
func (b block) position(index int64) int64 {
	at, stride := int64(0), int64(1)
	for k := len(b.shape) - 1; k >= 0; k-- {
		at += (b.offset[k] + index%b.shape[k]) * stride
		index /= b.shape[k]
		stride *= b.whole[k]
	}
	return at
}
