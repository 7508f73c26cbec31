package main

import (
	"crypto/rand"
	"fmt"
)

// validName is Docker's rule: [a-zA-Z0-9][a-zA-Z0-9_.-]+
func validName(name string) bool {
	for i, c := range []byte(name) {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '_' && c != '.' && c != '-') {
			return false
		}
	}
	return len(name) > 1
}

func checkName(name string) error {
	if !validName(name) {
		return fmt.Errorf("invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name)
	}
	if len(name) > 255 {
		return fmt.Errorf("invalid container name: longer than 255 bytes")
	}
	return nil
}

// randomName makes up a name, adjective_noun in the way of Docker's.
func randomName() string {
	var b [2]byte
	rand.Read(b[:])
	return nameAdjectives[int(b[0])%len(nameAdjectives)] + "_" + nameNouns[int(b[1])%len(nameNouns)]
}

var nameAdjectives = [...]string{
	"airy", "amber", "ample", "balmy", "bold", "brave", "breezy", "bright", "brisk", "calm", "candid", "clever",
	"cosy", "crisp", "curious", "deft", "eager", "early", "fair", "fleet", "fond", "frank", "fresh", "gentle",
	"glad", "golden", "hardy", "honest", "jolly", "keen", "kind", "lively", "lucid", "mellow", "merry", "mild",
	"neat", "nimble", "patient", "placid", "plucky", "polite", "quick", "quiet", "rosy", "serene", "sharp", "smooth",
	"snug", "solid", "spry", "steady", "sunny", "swift", "tidy", "trim", "vivid", "warm", "wise", "witty",
	"young", "zesty", "shy", "silver",
}

var nameNouns = [...]string{
	"alder", "apple", "ash", "aspen", "balsa", "bamboo", "baobab", "bay", "beech", "birch", "box", "cedar",
	"cherry", "cork", "cypress", "date", "ebony", "elder", "elm", "fig", "fir", "gum", "hazel", "hemlock",
	"hickory", "holly", "iroko", "ivy", "jarrah", "juniper", "kapok", "larch", "laurel", "lemon", "lime", "linden",
	"locust", "mango", "maple", "myrtle", "nutmeg", "oak", "olive", "osier", "palm", "pear", "pecan", "pine",
	"plane", "plum", "poplar", "quince", "redwood", "rowan", "sequoia", "spruce", "sumac", "teak", "thuja", "tupelo",
	"walnut", "wenge", "willow", "yew",
}
