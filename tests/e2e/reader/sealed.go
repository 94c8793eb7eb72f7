package main

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"io"
	"os"
	"strings"

	"lukechampine.com/blake3"
)

const (
	headerSize  = 40
	tagSize     = 16
	segmentSize = 1 << 20
)

// binding is what a sealed file is bound to: its associated data.
type binding struct{ purpose, directory, step, rank, name string }

func (b binding) data(job string) string {
	lines := []string{"dstj-sealed/1", job, b.purpose, b.directory, b.step, b.rank, b.name}
	for i, line := range lines {
		if line == "" {
			lines[i] = "-"
		}
	}
	return strings.Join(lines, "\n")
}

// opened is what one whole and authentic file was.
type opened struct {
	size, plainSize int64
	digests         []string
	salt, sha256    string
}

// sealedFile has a key that fits its last segment, so its length is authentic.
type sealedFile struct {
	file   *os.File
	size   int64
	header []byte
	key    []byte
}

func openFile(path string, ring *keyring, bound binding, plain io.Writer) opened {
	file := regular(path)
	defer file.Close()
	size := must(file.Stat()).Size()
	if ring == nil {
		return readClear(file, size, plain)
	}
	return openSealed(file, size, ring, bound).read(plain)
}

func regular(path string) *os.File {
	if !must(os.Lstat(path)).Mode().IsRegular() {
		refuse("%s is no regular file", path)
	}
	return must(os.Open(path))
}

func readClear(file *os.File, size int64, plain io.Writer) opened {
	sha, blake := sha256.New(), blake3.New(32, nil)
	count := must(io.Copy(io.MultiWriter(sha, blake, plain), file))
	digest := hex.EncodeToString(sha.Sum(nil))
	digests := []string{"blake3:" + hex.EncodeToString(blake.Sum(nil)), digest}
	return opened{size: size, plainSize: count, digests: digests, sha256: digest}
}

func openSealed(file *os.File, size int64, ring *keyring, bound binding) *sealedFile {
	s := &sealedFile{file: file, size: size, header: make([]byte, headerSize)}
	if size < headerSize+tagSize {
		refuse("%s has %d bytes, too few for a sealed file", file.Name(), size)
	}
	must(file.ReadAt(s.header, 0))
	if s.header[0] != headerSize {
		refuse("%s does not begin like a sealed file", file.Name())
	}
	s.key = s.fitting(ring, bound)
	return s
}

func (s *sealedFile) fitting(ring *keyring, bound binding) []byte {
	last := s.segment(s.last())
	if s.last() > 0 && len(last) <= tagSize {
		refuse("%s ends in an empty segment", s.file.Name())
	}
	for _, key := range ring.keys {
		s.key = must(hkdf.Key(sha256.New, key.key, s.header[1:33], bound.data(ring.job), 32))
		if _, err := s.decrypt(s.last(), last); err == nil {
			return s.key
		}
	}
	refuse("%s was changed, cut off, or is not what %q sealed", s.file.Name(), bound.data(ring.job))
	return nil
}

func (s *sealedFile) read(plain io.Writer) opened {
	sha, tags, count := sha256.New(), sha256.New(), int64(0)
	for index := int64(0); index <= s.last(); index++ {
		segment := s.segment(index)
		text, err := s.decrypt(index, segment)
		if err != nil {
			refuse("%s: segment %d is not authentic", s.file.Name(), index)
		}
		tags.Write(segment[len(segment)-tagSize:])
		count += int64(must(io.MultiWriter(sha, plain).Write(text)))
	}
	salt, digest := hex.EncodeToString(s.header[1:33]), hex.EncodeToString(sha.Sum(nil))
	return opened{s.size, count, []string{hex.EncodeToString(tags.Sum(nil))}, salt, digest}
}

func (s *sealedFile) last() int64 { return (s.size - 1) / segmentSize }

func (s *sealedFile) segment(index int64) []byte {
	begin, end := index*segmentSize, min((index+1)*segmentSize, s.size)
	if index == 0 {
		begin = headerSize
	}
	if end-begin < tagSize {
		refuse("%s is cut off", s.file.Name())
	}
	segment := make([]byte, end-begin)
	must(s.file.ReadAt(segment, begin))
	return segment
}

func (s *sealedFile) decrypt(index int64, segment []byte) ([]byte, error) {
	nonce := binary.BigEndian.AppendUint32(append([]byte{}, s.header[33:]...), uint32(index))
	if index == s.last() {
		nonce = append(nonce, 1)
	} else {
		nonce = append(nonce, 0)
	}
	return gcm(s.key).Open(nil, nonce, segment, nil)
}
