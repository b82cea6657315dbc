plugins {
    id("com.android.application")
    kotlin("android")
}

android {
    namespace = "mmcli"
    compileSdk = 35
    defaultConfig { minSdk = 26 }
    androidResources { noCompress += "ort" }
}

dependencies {
    implementation("com.microsoft.onnxruntime:onnxruntime-android:1.30.0")
    implementation("ai.djl.huggingface:tokenizers:0.33.0")
    runtimeOnly("ai.djl.android:tokenizer-native:0.33.0") // the same version; it needs libc++_shared.so of the NDK
}
