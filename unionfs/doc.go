// Package unionfs is the read-only side: it merges the layers of an image into one image tree.
package unionfs
