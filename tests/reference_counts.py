"""Parameter counts of models as others count them: name -> count at the shape and classes the model was made for.

The count in a model's own @model line is checked against the built model; this table says that somebody else has the
same number. Sources stand above each group.
"""

COUNTS: dict[str, int] = {
    # the textbook
    "lenet5": 62_006,
    "mlp": 203_530,
    # arithmetic on the papers' tables, in test_models_references.py
    "resnet20-he": 269_722,
    "resnet32-he": 464_154,
    "resnet44-he": 658_586,
    "resnet56-he": 853_018,
    "resnet110-he": 1_727_962,
    "preact-resnet34": 21_279_306,
    "preact-resnet50": 23_509_066,
    "resnext29-4x64d": 27_104_586,
    "resnext29-8x64d": 89_598_282,
    "dpn26": 11_574_842,
    # kuangliu's pytorch-cifar, counted by running its models
    "resnet18-cifar": 11_173_962,
    "resnet34-cifar": 21_282_122,
    "resnet50-cifar": 23_520_842,
    "resnet101-cifar": 42_512_970,
    "resnet152-cifar": 58_156_618,
    "vgg11-cifar": 9_231_114,
    "vgg13-cifar": 9_416_010,
    "vgg16-cifar": 14_728_266,
    "vgg19-cifar": 20_040_522,
    "preact-resnet18": 11_171_146,
    "densenet121-cifar": 6_956_298,
    "resnext29-32x4d": 4_774_218,
    "resnext29-2x64d": 9_128_778,
    "senet18": 11_260_354,
    "dpn92": 34_236_634,
    "googlenet-cifar": 6_166_250,
    # kuangliu's pytorch-cifar, counted by running its models
    "mobilenet-v1-cifar": 3_217_226,
    "mobilenet-v2-cifar": 2_296_922,
    "shufflenet-v2-cifar": 1_263_854,
    "efficientnet-b0-cifar": 3_599_686 - 1_088,  # without the 32x32 convolution and BatchNorm that it holds, unused
    "regnet-x-200mf-cifar": 2_321_946,
    "regnet-y-400mf-cifar": 5_714_362,
    "pnasnet-a": 130_646,
    "pnasnet-b": 451_626,
    "dla": 16_291_386,
    "simple-dla": 15_142_970,
    # torchvision's num_params, less the weights and biases of 990 of the 1000 classes
    "shufflenet-v2-x05-cifar": 1_366_792 - 990 * 1_025,
    "shufflenet-v2-x15-cifar": 3_503_624 - 990 * 1_025,
    "shufflenet-v2-x20-cifar": 7_393_996 - 990 * 2_049,
    # the textbook
    "linear-regression": 13 + 1,
    "logistic-regression": 784 * 10 + 10,
    "softmax-regression": 784 * 10 + 10,
    "lstm-rows": 82_186,
    "rnn-rows": 21_514,
    "gru-rows": 3 * (28 * 128 + 128 * 128 + 2 * 128) + 1_290,
    "sine-rnn": (1 + 32 + 2) * 32 + 33,
    # AlexNet as the sum of its layers: kernels and biases of five convolutions, then the linear layers
    "alexnet-grey": 11_712 + 614_656 + 885_120 + 1_327_488 + 884_992 + 26_218_496 + 16_781_312 + 40_970,
    "alexnet-cifar": 23_296 + 307_392 + 663_936 + 884_992 + 590_080 + 2_570,
    # PyTorch's VAE example; generator and discriminator of its DCGAN example; the network of Mnih et al. 2015, twice
    "vae": 652_824,
    "dcgan": 3_576_704 + 2_765_568,
    "dqn-nature": 2 * 1_686_180,
    # sums of layers, weights before biases; kernels of 4x4, and two numbers per channel of BatchNorm; two networks
    "autoencoder": 2 * (784 * 128 + 128 * 32) + 128 + 32 + 128 + 784,
    "dcgan-digits": 16 * (32 * 64 + 64 * 32 + 32 * 16 + 16) + 2 * 112 + 16 * (16 + 16 * 32 + 32 * 64 + 64) + 2 * 96,
    "dqn-mlp": 2 * (4 * 128 + 128 + 128 * 128 + 128 + 128 * 2 + 2),
    # milesial's Pytorch-UNet, 3 channels and 2 classes
    "unet": 31_037_698,
    "unet-bilinear": 17_263_042,
    # by hand: VGG16's features 14,714,688, fc6 102,764,544, fc7 16,781,312; scores of the last, fourth and third stage
    # 86,037, 10,773 and 5,397; transposed convolutions 21 x 21 x (2 factor)^2
    "fcn32s-vgg16": 136_152_917,
    "fcn16s-vgg16": 134_815_994,
    "fcn8s-vgg16": 134_489_759,
    # torchvision's metadata of its weights, with the auxiliary head
    "fcn-resnet50": 35_322_218,
    "fcn-resnet101": 54_314_346,
    "deeplab-v3-resnet50": 42_004_074,
    "deeplab-v3-resnet101": 60_996_202,
    "deeplab-v3-mobilenet-v3-large": 11_029_328,
    # by hand: vgg16_bn's features 14,723,136 and the decoder 14,726,796
    "segnet": 29_449_932,
    # by hand: ResNet-50 or -101 without its head 23,508,032 or 42,500,160, pyramid 4,198,400, head 18,886,165,
    # auxiliary head 2,365,205
    "pspnet-resnet50": 48_957_802,
    "pspnet-resnet101": 67_949_930,
    # the papers' 20.5M; by hand 14,714,688 + 4,719,616 + 1,049,600 + 21,525, and 42,500,160 + 4 x 387,093
    "deeplab-v1-largefov": 20_505_429,
    "deeplab-v2-resnet101": 44_048_532,
    # by hand from yolov3.cfg: Darknet-53 without its classifier 40,584,928, heads 15,999,231, 4,133,119 and
    # 1,067,263 with 255 numbers at each place, the convolutions before the two steps up 131,584 and 33,024
    "yolov3": 61_949_149,
    # torchvision's metadata of its weights at 91 classes, the background among them; all but v2 are published with
    # BatchNorm frozen, whose 53,120 scales and shifts in ResNet-50 are no parameters there
    "maskrcnn-resnet50-fpn": 44_401_393 + 53_120,
    "maskrcnn-resnet50-fpn-v2": 46_359_409,
    "fasterrcnn-resnet50-fpn": 41_755_286 + 53_120,
    "retinanet-resnet50-fpn": 34_014_999 + 53_120,
    "fcos-resnet50-fpn": 32_269_600 + 53_120,
}
